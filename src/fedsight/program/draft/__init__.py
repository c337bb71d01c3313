"""Drafts of configs: what a folder of images seems to hold, and a program that fits it."""
