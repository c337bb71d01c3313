"""Secure aggregation: the coordinator learns the sum of the updates and none of them."""
