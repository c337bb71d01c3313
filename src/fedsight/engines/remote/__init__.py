"""The engine whose sites are on other machines."""
