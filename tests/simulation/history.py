"""The history of a simulated fleet, as lines; all of them, or those of one request."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.world import World


class History:
    """Lines with their time and the ids that they concern; None: all requests."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._lines: list[tuple[float, str, Sequence[bytes] | None]] = []

    def add(self, now: float, text: str, ids: Sequence[bytes] | None) -> None:
        """Add a line."""
        self._lines.append((now, text, ids))

    def add_message(self, now: float, text: str, message: Any) -> None:
        """Add a line about a message that is read or lost."""
        name = type(message).__name__
        if hasattr(message, "queued"):
            for part in ("queued", "running", "finished"):
                if ids := getattr(message, part):
                    self.add(now, f"{text} {name}: {part} {_short(ids)}", ids)
        elif hasattr(message, "request_ids"):
            self.add(now, f"{text} {name} {_short(message.request_ids)}", message.request_ids)
        elif getattr(message, "request_id", None) is not None:
            extra = "".join(
                f" {field}={value}"
                for field in ("attempt", "code", "message", "timeout_seconds", "offset", "length")
                if (value := getattr(message, field, None)) is not None
            )
            self.add(now, f"{text} {name} {message.request_id.hex()[:8]}{extra}", [message.request_id])

    def lines(self) -> list[str]:
        """Return all lines."""
        return [f"{now:9.3f} {text}" for now, text, _ in self._lines]

    def of(self, key: bytes | None) -> list[str]:
        """Return the lines about a request, and those about all requests."""
        key_of = self._world.record.key_of
        return [
            f"{now:9.3f} {text}"
            for now, text, ids in self._lines
            if ids is None or (key is not None and any(key_of.get(i, i) == key for i in ids))
        ]

    def digest(self) -> str:
        """Return a hash of all lines."""
        return hashlib.sha256("\n".join(self.lines()).encode()).hexdigest()


def _short(ids: Sequence[bytes]) -> str:
    return " ".join(request_id.hex()[:8] for request_id in ids)
