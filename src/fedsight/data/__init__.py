"""Images and texts: sources, reading, and how samples are divided among sites."""
