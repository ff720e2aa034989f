"""Stores: the `.krs` file, its format, and how one is written and read."""
