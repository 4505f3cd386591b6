"""The rate at which the gateway reads and drops bodies that it has already answered."""

from dataclasses import dataclass

BYTES_PER_SECOND = 16 * 1024**2
"""Rate of all connections together. At full speed, one loopback client would occupy the event loop."""


@dataclass(slots=True)
class DiscardRate:
    """The time until which the bytes dropped so far are paid for. Times are monotonic seconds."""

    _paid_at: float = 0.0

    def pause(self, size: int, now: float) -> float:
        """Return the seconds for which a connection that dropped `size` bytes must not be read."""
        self._paid_at = max(self._paid_at, now) + size / BYTES_PER_SECOND
        return self._paid_at - now
