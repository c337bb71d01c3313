"""Networks by name, and their norms."""
