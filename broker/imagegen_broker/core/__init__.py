"""The broker's decisions, sans I/O: no sockets, no threads, no clock, no randomness.."""
