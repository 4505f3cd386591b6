"""One line about a worker, for `systemctl status`."""

from collections import deque

from imagegen_worker.core.worker import WorkerCore

_SAMPLES = 13
"""With one each five seconds, the speed is that of the last minute."""


class StatusLine:
    """Says what a warm worker does; keeps what it needs to know the speed. Times are monotonic seconds."""

    def __init__(self, device: str, brokers: int) -> None:
        self._device = device
        self._brokers = brokers
        self._made: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)

    def text(self, core: WorkerCore, now: float) -> str:
        """Return the line; call it at even distances."""
        held = core.held
        self._made.append((now, core.totals.images))
        since, before = self._made[0]
        speed = (core.totals.images - before) / (now - since) if now > since else 0.0
        words = [
            f"{', '.join(core.warm_models)} on {self._device}",
            f"depth {held.queued_images() + held.running_images()} ({held.running_images()} running)",
            f"{speed:.2f} images/s",
            f"{core.registered} of {self._brokers} brokers",
        ]
        return ", ".join(["draining", *words] if core.draining else words)
