"""Detection of a device that hangs in the middle of a batch."""

from math import inf


class StepWatchdog:
    """Measures the time since the last denoising step. Times are monotonic seconds.

    A `timeout` of None or 0 disables the detection.
    """

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._stepped_at: float | None = None
        self._paused = False

    def step(self, now: float) -> None:
        """Record a step; the next one is expected within the timeout."""
        self._stepped_at, self._paused = now, False

    def pause(self) -> None:
        """Expect no steps: the device loads a model."""
        self._paused = True

    def resume(self, now: float) -> None:
        """Expect steps again if a batch was running before the pause."""
        self._stepped_at, self._paused = None if self._stepped_at is None else now, False

    def stop(self) -> None:
        """Expect no steps: the device is idle."""
        self._stepped_at, self._paused = None, False

    def age(self, now: float) -> float | None:
        """Return the seconds since the last step; None while no step is expected."""
        return None if self._stepped_at is None or self._paused else max(now - self._stepped_at, 0.0)

    def deadline(self) -> float:
        """Return when the device counts as hung unless it makes a step; infinite if never."""
        if self._stepped_at is None or self._paused or not self._timeout:
            return inf
        return self._stepped_at + self._timeout
