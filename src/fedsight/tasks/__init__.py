"""Tasks: a task defines the loss, the metrics and the predictions."""
