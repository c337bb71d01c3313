"""Evaluation: figures, and the comparison with training alone and on pooled data."""
