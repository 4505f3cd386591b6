"""Scheduling: which request goes next, and to which worker. Pure: no sockets, threads, clock or randomness."""
