"""Sweeps: a grid of settings and seeds, several runs side by side."""
