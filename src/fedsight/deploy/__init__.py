"""Federations across machines: keys and kits, processes that are kept alive, runs as job chains."""
