"""Delivery: which model a site gets when a run ends, chosen at the site on its own images."""
