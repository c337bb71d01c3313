"""Networks by name, their normalisation layers, and pretrained weights."""
