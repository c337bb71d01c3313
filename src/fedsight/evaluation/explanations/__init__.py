"""Explanations: which regions of an image an answer rests on, and how far that can be believed."""
