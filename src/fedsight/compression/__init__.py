"""Compression: how updates are encoded for transfer from a site to the coordinator."""
