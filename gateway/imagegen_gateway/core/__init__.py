"""What the gateway decides: pure functions of what they are given. No sockets, clock or randomness."""
