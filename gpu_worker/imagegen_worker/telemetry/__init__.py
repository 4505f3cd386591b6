"""Prometheus metrics, the HTTP endpoint, traces and the status line of a worker."""
