"""Images and texts that stand in a data set more than once."""
