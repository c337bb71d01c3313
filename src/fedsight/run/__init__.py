"""A run: the program, its config file, the round loop, the run folder."""
