"""The figures of one run of the broker's benchmark."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """Requests per second, latencies in seconds, and CPU seconds of the forwarding process per request."""

    a_second: float
    p50: float
    p99: float
    p999: float
    cpu: float
    memory: int = 0
    """Resident bytes of the forwarding process at the end of the run."""
