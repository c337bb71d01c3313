"""Metrics that a configuration can add to a task, one file each."""
