"""Ways to make one update of many."""
