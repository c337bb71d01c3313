"""The secure aggregation protocol: the coordinator learns only the sum of the updates."""
