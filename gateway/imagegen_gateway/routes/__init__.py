"""The HTTP routes, by resource."""
