"""What a model is worth: figures, and the comparison with training alone and pooled."""
