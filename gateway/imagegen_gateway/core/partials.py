"""Which previews become the partial images of a stream: as many as were asked for, spread over the steps."""

from dataclasses import dataclass


@dataclass(slots=True)
class Partials:
    """Picks at most `wanted` previews of one request."""

    wanted: int
    given: int = 0

    def pick(self, step: int, steps: int) -> int | None:
        """Return the index of the partial image that the preview of this step is, or None: pass it over."""
        if self.given >= self.wanted or steps <= 0:
            return None
        if step * (self.wanted + 1) < steps * (self.given + 1):
            return None
        self.given += 1
        return self.given - 1
