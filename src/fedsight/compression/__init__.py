"""Compression: how vectors are encoded for transfer between sites and coordinator."""
