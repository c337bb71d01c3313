"""What the detection task is made of."""
