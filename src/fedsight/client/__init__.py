"""What a site computes: the client step, local training, and what a site keeps between rounds."""
