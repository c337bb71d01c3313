"""Runs from beginning to end: start, resume, load."""
