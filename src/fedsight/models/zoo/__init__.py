"""Model builders: one file each."""
