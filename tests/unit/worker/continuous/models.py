"""A model and pipelines of plain numbers, to test the scheduler without torch."""

from imagegen_worker.backends import DeviceMemoryError
from imagegen_worker.engines.continuous.calls import Call, current_task, wait_for_forward


class ToyStage:
    """Returns 2x + 1 for each x. Runs out of memory above `fits` rows, and raises for the numbers in `poison`."""

    def __init__(
        self,
        name="toy",
        *,
        is_denoiser=True,
        is_decoder=False,
        fits=None,
        exclusive=False,
        fixed_rows=None,
        clock=None,
    ):
        self.name = name
        self.is_denoiser = is_denoiser
        self.is_decoder = is_decoder
        self.exclusive = exclusive
        self.fixed_rows = fixed_rows
        self.fits = fits
        self.poison = set()
        self.joint_errors = []
        self.forwards = []
        self.freed = 0
        self.clock = clock

    def run(self, calls, max_rows):
        if len(calls) > 1 and self.joint_errors:
            raise self.joint_errors[0]
        values = [value for call in calls for value in call.args]
        outputs = []
        for begin in range(0, len(values), max_rows):
            outputs += self._forward(values[begin : begin + max_rows], calls[0].kwargs["key"])
        given = iter(outputs)
        return [[next(given) for _ in call.args] for call in calls]

    def _forward(self, values, key):
        if self.fits is not None and len(values) > self.fits:
            raise DeviceMemoryError(f"{len(values)} rows")
        for value in values:
            if value in self.poison:
                raise ValueError(f"poison: {value}")
        self.forwards.append((key, len(values)))
        if self.clock is not None:
            self.clock.forward(key, len(values))
        return [2 * value + 1 for value in values]

    def run_in_tiles(self, call):
        raise DeviceMemoryError("no tiles")

    def free_memory(self):
        self.freed += 1

    def __call__(self, *values, key="shape", reason=""):
        return wait_for_forward(
            Call(self, values, {"key": key, "reason": reason}, current_task(), rows=len(values))
        )

    def describe(self, call):
        call.key, call.reason = call.kwargs["key"], call.kwargs["reason"]


class ToyClock:
    """Time that passes only in forwards, by `cost(key, rows)` in seconds."""

    def __init__(self, cost):
        self.now = 0.0
        self.cost = cost

    def __call__(self):
        return self.now

    def forward(self, key, rows):
        self.now += self.cost(key, rows)


def pipeline(stage, start, steps, key="shape", on_step=None):
    """Return a pipeline of `steps` calls with one row each, starting with the number `start`."""

    def run():
        value = start
        for step in range(steps):
            (value,) = stage(value, key=key)
            if on_step is not None:
                on_step(step + 1, steps)
        return value

    return run


def alone(start, steps):
    """Return the result of such a pipeline without a scheduler."""
    for _ in range(steps):
        start = 2 * start + 1
    return start


def finish(scheduler):
    """Run a scheduler until no call waits; return the ended tasks by tag."""
    while scheduler.step():
        pass
    return {task.tag: task for task in scheduler.ended()}
