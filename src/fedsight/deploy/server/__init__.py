"""The coordinator's machine: server, run scheduler, jobs, operators."""
