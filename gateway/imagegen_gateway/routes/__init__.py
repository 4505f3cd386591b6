"""The paths, by what they are for."""
