"""Federations across machines: members, long-lived processes, the server and the sites."""
