"""The project beside others that serve models or run tasks, each set up as its user would; see `__main__`."""
