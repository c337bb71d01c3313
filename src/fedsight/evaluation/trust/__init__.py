"""Trust: probabilities that are right, sets that cover, and images unlike those of the training."""
