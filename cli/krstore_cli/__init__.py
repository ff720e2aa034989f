"""The command line of krstore: a few lines a command over the library's functions."""
