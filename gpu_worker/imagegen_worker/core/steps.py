"""When the device made its last step, and from when on it counts as hung."""


class StepWatch:
    """Told of steps, loads and rests; times are monotonic seconds. `timeout` None or 0: nothing counts as hung."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._at: float | None = None
        self._loading = False

    def step(self, now: float) -> None:
        """The device has made a step."""
        self._at, self._loading = now, False

    def load(self) -> None:
        """The device is taken up by loading a model: it makes no steps, and does not hang."""
        self._loading = True

    def loaded(self, now: float) -> None:
        """It goes on with what it did before."""
        self._at, self._loading = None if self._at is None else now, False

    def rest(self) -> None:
        """Nothing runs."""
        self._at, self._loading = None, False

    def age(self, now: float) -> float | None:
        """Return the seconds since the last step; None if the device need not make any."""
        return None if self._at is None or self._loading else max(now - self._at, 0.0)

    def hung_at(self) -> float:
        """Return when the device counts as hung, if it makes no step before."""
        if self._at is None or self._loading or not self._timeout:
            return float("inf")
        return self._at + self._timeout
