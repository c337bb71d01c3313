"""Generalisation: how much better a model is on images that it knows, and how far it stands
corrupted ones."""
