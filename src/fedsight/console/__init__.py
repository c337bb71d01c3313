"""The console: runs and federations in the browser, while they go on."""

PORT = 8750  # at which it is served if no other is asked for
