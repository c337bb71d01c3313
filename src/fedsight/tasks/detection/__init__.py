"""The parts of the detection task."""
