"""The gateway's decisions: pure functions without sockets, clock or randomness."""
