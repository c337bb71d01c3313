"""What an operations team watches a server or a site by: health, metrics, hooks, log lines."""
