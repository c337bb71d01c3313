"""The privacy mechanisms, one file each, selected by name in `[privacy]`."""
