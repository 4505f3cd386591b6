"""The status line of a worker, for `systemctl status`."""

from collections import deque

from imagegen_worker.core.worker import WorkerCore

_SAMPLES = 13
"""At one sample every 5 seconds, the speed is that of the last minute."""


class StatusLine:
    """Formats the status, with the speed over the last samples. Times are monotonic seconds."""

    def __init__(self, device: str, brokers: int) -> None:
        self._device = device
        self._brokers = brokers
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)

    def text(self, core: WorkerCore, now: float) -> str:
        """Return the line; call it at regular intervals."""
        held = core.held
        self._samples.append((now, core.counters.images))
        since, before = self._samples[0]
        speed = (core.counters.images - before) / (now - since) if now > since else 0.0
        parts = [
            f"{', '.join(core.loaded_models)} on {self._device}",
            f"depth {held.queued_images() + held.running_images()} ({held.running_images()} running)",
            f"{speed:.2f} images/s",
            f"{core.registered} of {self._brokers} brokers",
        ]
        return ", ".join(["draining", *parts] if core.draining else parts)
