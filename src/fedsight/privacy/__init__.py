"""Differential privacy and secure aggregation of updates, and their accounting."""
