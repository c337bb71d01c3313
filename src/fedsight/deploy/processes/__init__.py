"""Long-lived processes: supervised, and forked from one that has imported everything."""
