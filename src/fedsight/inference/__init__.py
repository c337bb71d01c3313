"""A finished run in use: predictions, exports, recognition."""
