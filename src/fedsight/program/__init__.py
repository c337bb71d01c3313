"""A program: what a run computes, read from a config file and checked."""
