"""Processes that are kept alive, and forked from one that has its imports done."""
