"""Who belongs to a federation: authority, kits, admission, presence."""
