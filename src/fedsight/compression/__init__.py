"""Compression: how updates are written down for the way from a site to the coordinator."""
