"""Selection of the previews that a stream sends as partial images."""

from dataclasses import dataclass


@dataclass(slots=True)
class PartialImageSelector:
    """Selects at most `count` previews of one request, spread evenly over its steps."""

    count: int
    selected: int = 0

    def select(self, step: int, steps: int) -> int | None:
        """Return the index of the partial image that the preview of this step becomes; None to skip it."""
        if self.selected >= self.count or steps <= 0:
            return None
        if step * (self.count + 1) < steps * (self.selected + 1):
            return None
        self.selected += 1
        return self.selected - 1
