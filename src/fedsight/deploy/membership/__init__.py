"""The members of a federation: its authority, kits, admission and presence."""
