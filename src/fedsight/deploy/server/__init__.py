"""The coordinator's machine: the server, the run scheduler, jobs, operator sessions."""
