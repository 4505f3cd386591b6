"""Durable jobs: stored before they are accepted, resumed after a restart, each ended exactly once."""
