"""The worker's state machine: events in, actions out. No sockets, clock, threads or model libraries."""
