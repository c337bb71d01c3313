"""Adapters: a few parameters that learn in place of a network's own."""
