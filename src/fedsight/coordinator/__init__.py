"""What the coordinator computes: the round loop, the run folder, protection, callbacks."""
