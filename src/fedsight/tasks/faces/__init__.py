"""Face recognition: training, verification, galleries."""
