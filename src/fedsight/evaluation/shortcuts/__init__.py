"""Shortcuts: whether the model looks at the same spots of an image whichever site it is from."""
