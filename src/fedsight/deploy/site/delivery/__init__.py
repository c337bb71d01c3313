"""What a site makes of the model that a run ended with: its own recogniser, which stays there."""
