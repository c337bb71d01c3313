"""The mechanisms by name, a file each: `[privacy]` in the config."""
