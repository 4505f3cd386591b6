"""The worker's decisions, without sockets, clock, threads or model libraries."""
