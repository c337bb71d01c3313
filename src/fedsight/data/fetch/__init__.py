"""Data sets fetched by name through a package client: checked and unpacked, never run."""
