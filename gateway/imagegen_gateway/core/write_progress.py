"""Detection of clients that do not read their responses."""

from dataclasses import dataclass

PAUSE_SECONDS = 20.0
"""Maximum time in which a client reads none of the bytes that wait for it."""
PART_SECONDS = 300.0
"""Maximum time in which a client reads the bytes that wait for it: 32 MiB at one megabit a second."""


@dataclass(slots=True)
class WriteProgress:
    """Observations of the bytes that wait to be sent on one connection. Times are monotonic seconds."""

    _waiting: int = 0
    _begun: float | None = None
    _read: float = 0.0
    _drained: bool = False

    def note_drained(self) -> None:
        """Record that the client has read most of the waiting bytes since the last call of `is_stalled`."""
        self._drained = True

    def is_stalled(self, waiting: int, now: float) -> bool:
        """Return whether the client reads too slowly; `waiting` is the current number of bytes."""
        drained, self._drained = self._drained, False
        if waiting == 0:
            self._begun = None
        elif self._begun is None or drained:
            self._begun = self._read = now
        elif waiting < self._waiting:
            self._read = now
        self._waiting = waiting
        return self._begun is not None and (now - self._read >= PAUSE_SECONDS or now - self._begun >= PART_SECONDS)
