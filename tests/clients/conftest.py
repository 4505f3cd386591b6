"""Fixtures: a fleet with a simulated worker, as for the gateway's tests."""

from tests.e2e.gateway.conftest import fleet, start_gateway, worker_options

__all__ = ["fleet", "start_gateway", "worker_options"]
