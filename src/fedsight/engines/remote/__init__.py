"""The engine for sites on other machines."""
