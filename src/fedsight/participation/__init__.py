"""Who takes part in a round, and when: ways to choose sites, virtual time, buffered rounds."""
