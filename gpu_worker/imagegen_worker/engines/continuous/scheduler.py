"""Scheduling of forwards that several pipeline calls share.

A pipeline call is a plain function that runs on a greenlet of its own, a `Task`. Where it would call a model, it
calls `wait_for_forward`, which switches to the scheduler. Each `BatchScheduler.step` chooses calls that can share,
lets their stage run one forward for them, and resumes each task with its part of the output until it calls a model
again or ends. Nothing here depends on torch.

A forward changes no state. So a forward that runs out of memory is repeated in smaller parts, and one that raises
anything else is repeated call by call, so that only the faulty call fails.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from imagegen_worker.backends import DeviceLostError, DeviceMemoryError, StoppedError
from imagegen_worker.backends.tracebacks import release_frames
from imagegen_worker.core.cost_fit import FORWARD_SHARES, CostFit
from imagegen_worker.engines.continuous.calls import MISMATCH, UNEQUAL, Call, NotShareableError, Stage, Task
from imagegen_worker.engines.continuous.limits import MemoryLimits, RowCosts
from imagegen_worker.engines.continuous.timing import Timer, WallTimer
from imagegen_worker.engines.continuous.turns import WaitingGroup, choose
from imagegen_worker.engines.continuous.unshareable import UnshareableKeys

DESCRIBED_FORWARDS = 64
"""Number of forwards for which a waiting call keeps its description: what can share changes with experience."""
MAX_QUEUED_FORWARDS = 2
"""Maximum number of forwards queued on the device before the scheduler waits for the oldest."""
CLEAR_GAIN = 0.1
"""Minimum speed-up for which a call for several images is run in parts."""
MAX_CANCEL_ATTEMPTS = 8
"""Times that a task may catch the exception that cancels it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardDone:
    """A forward (or several, after a split) for these tasks took `seconds` on the device.

    `fallback`: the reason why the call can't share forwards; "" if it can, or if no other call waited.
    """

    stage: Stage
    tasks: tuple[Task, ...]
    rows: int
    seconds: float
    fallback: str = ""

    @property
    def images(self) -> int:
        """Number of images that shared it."""
        return sum(task.wanted for task in self.tasks)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardSplit:
    """A forward of `rows` rows did not fit, and is repeated in parts of `max_rows`; 0: not even one row fits."""

    stage: Stage
    tasks: tuple[Task, ...]
    rows: int
    max_rows: int


SchedulerEvent = ForwardDone | ForwardSplit


@dataclass(frozen=True, slots=True)
class _Failure:
    """Facts about an error, stored instead of the error itself, whose frames refer to tensors on the device."""

    reason: str
    text: str
    is_memory: bool
    """Whether memory was short, which says nothing about whether the calls can share."""
    is_definite: bool
    """Whether the stage found that the calls can't share."""

    @classmethod
    def of(cls, error: Exception) -> "_Failure":
        found = isinstance(error, NotShareableError)
        reason = error.reason if isinstance(error, NotShareableError) else "error"
        return cls(reason, str(error), isinstance(error, DeviceMemoryError), found)


@dataclass(slots=True)
class _Group:
    """Calls that can share a forward, oldest task first."""

    key: Hashable | None
    calls: list[tuple[Task, Call]] = field(default_factory=list)


@dataclass(slots=True)
class _UntimedForward:
    """A forward whose time is not known yet."""

    mark: Any
    account: Hashable | None
    """Group whose costs are measured."""
    megapixels: float
    """Size of all its images."""
    sample: int | None
    """Rows of each of its parts; None if they differ, or if a part failed."""
    done: Callable[[float], ForwardDone]


class BatchScheduler:
    """Runs tasks, one forward in each `step`, on the thread and greenlet that created it."""

    def __init__(
        self,
        *,
        observe: Callable[[SchedulerEvent], None] = lambda event: None,
        timer: Timer | None = None,
        memory_limits: MemoryLimits | None = None,
        costs: RowCosts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._observe = observe
        self._timer = timer or WallTimer()
        self._memory_limits = memory_limits or MemoryLimits()
        self._costs = costs or RowCosts()
        self._clock = clock
        self._seconds: WeakKeyDictionary[Stage, CostFit] = WeakKeyDictionary()
        self._waiting: dict[Task, Call] = {}
        self._ended: list[Task] = []
        self._untimed: deque[_UntimedForward] = deque()
        self._unshareable = UnshareableKeys()
        self._short_of_memory: set[Stage] = set()
        self._owner: Task | None = None
        self._started = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def start(self, work: Callable[[], Any], **about: Any) -> Task:
        """Run `work` in a new task until its first call or its end. `about`: further arguments of `Task`."""
        self._started += 1
        task = Task(work, number=self._started, started_at=self._clock(), **about)
        self._resume(task, task.switch)
        return task

    def cancel(self, task: Task, error: BaseException | None = None) -> None:
        """End a task by throwing `error` (default `StoppedError`) into it where it waits."""
        for _ in range(MAX_CANCEL_ATTEMPTS):
            if self._waiting.pop(task, None) is None:
                return
            self._resume(task, task.throw, error or StoppedError())
        # The task catches every exception and calls again. Dropping all references ends it by garbage collection.
        self._waiting.pop(task, None)
        task.error = error or StoppedError()
        self._end(task)

    def ended(self) -> list[Task]:
        """Return the tasks that have ended since the last call, with `result` or `error`."""
        ended, self._ended = self._ended, []
        return ended

    def step(self) -> bool:
        """Run one forward and resume its tasks; return False if no call waits.

        Raises `DeviceLostError`; any other error is raised in the tasks that it concerns.
        """
        chosen, limit = self._choose()
        if not chosen:
            self.settle(wait=True)
            return False
        outcomes = self._forward(chosen, limit)
        self.settle()
        for (task, _), (output, error) in zip(chosen, outcomes, strict=True):
            del self._waiting[task]
            if error is None:
                self._resume(task, task.switch, output)
            else:
                self._resume(task, task.throw, error)
        return True

    def settle(self, *, wait: bool = False) -> None:
        """Account for the forwards whose time is known by now, or for all of them if `wait`."""
        while self._untimed:
            forward = self._untimed[0]
            seconds = self._timer.seconds(forward.mark, wait=wait or len(self._untimed) > MAX_QUEUED_FORWARDS)
            if seconds is None:
                return
            self._untimed.popleft()
            done = forward.done(seconds)
            for task in done.tasks:
                task.seconds += seconds * task.wanted / done.images
                task.largest_batch = max(task.largest_batch, done.images)
            if done.stage.is_denoiser:
                self._seconds.setdefault(done.stage, CostFit(FORWARD_SHARES)).observe(
                    (1.0, forward.megapixels), seconds
                )
                if forward.account is not None and forward.sample is not None:
                    self._costs.observe(forward.account, forward.sample, seconds * forward.sample / done.rows)
            self._observe(done)

    # ---- choice of the next forward ----------------------------------------------------------------------------

    def _choose(self) -> tuple[list[tuple[Task, Call]], int | None]:
        """Return the calls of the next forward, and the rows of a part if it is run in parts (see `_how_many`)."""
        if len(self._waiting) == 1:
            (alone,) = self._waiting.items()
            stage = alone[1].stage
            if stage.exclusive:
                self._own(alone[0])
            if alone[0].images == 1 and stage.fixed_rows is None and stage not in self._short_of_memory:
                return [alone], None
        groups: dict[Hashable, _Group] = {}
        urgent: dict[Hashable, _Group] = {}
        for task, call in sorted(self._waiting.items(), key=lambda item: item[0].number):
            if (call.ready is not None and not call.ready()) or (call.stage.exclusive and not self._own(task)):
                continue
            _describe(call)
            if call.key is not None and (reason := self._unshareable.count(call.key)) is not None:
                call.key, call.reason = None, reason
            of = groups if call.stage.is_denoiser else urgent
            of.setdefault(_account(task, call), _Group(call.key)).calls.append((task, call))
        # Text encoders let a request join the batch, decoders let it leave. Both are short.
        if urgent:
            group = next(iter(urgent.values()))
        elif groups:
            now = self._clock()
            group = groups[choose({key: self._waiting_group(group, now) for key, group in groups.items()})]
        else:
            # No call can run: the oldest that waits for a condition continues, and blocks the thread if it must.
            blocked = [(task, call) for task, call in self._waiting.items() if call.ready is not None]
            return blocked[:1], None
        count, limit = self._how_many(group)
        return group.calls[:count], limit

    def _waiting_group(self, group: _Group, now: float) -> WaitingGroup:
        tasks = [task for task, _ in group.calls]
        fit = self._seconds.get(group.calls[0][1].stage)
        fixed, each = (fit and fit.coefficients()) or (0.0, 0.0)
        seconds = fixed + each * _megapixels(tasks)
        steps_left = min(task.steps_left for task in tasks)
        return WaitingGroup(
            sum(task.wanted for task in tasks), steps_left * seconds, now - min(task.started_at for task in tasks)
        )

    def _own(self, task: Task) -> bool:
        """Return whether the task owns the exclusive stages; it acquires them if no other task does."""
        if self._owner is None:
            self._owner = task
        return self._owner is task

    def _how_many(self, group: _Group) -> tuple[int, int | None]:
        """Return how many calls of the group share the next forward, the oldest first.

        Also return the rows of a part if the first call alone is faster in parts; else None.
        """
        if group.key is None:
            return 1, None
        sizes = []
        rows = 0
        for _, call in group.calls:
            rows += call.rows
            sizes.append(rows)
        stage = group.calls[0][1].stage
        limit = stage.fixed_rows or self._memory_limits.allowed(group.key)
        fitting = [size for size in sizes if limit is None or size <= limit] or sizes[:1]
        if stage.fixed_rows is not None or not stage.is_denoiser:
            return len(fitting), None
        best = self._costs.choose(group.key, fitting)
        if best > sizes[0]:
            return sizes.index(best) + 1, None
        # No image of a call is ready before the others, so running in parts must be clearly faster.
        part = self._costs.choose(group.key, [*_parts(*group.calls[0]), best], gain=-CLEAR_GAIN)
        return 1, None if part == best else part

    # ---- one forward ---------------------------------------------------------------------------------------

    def _forward(
        self, chosen: Sequence[tuple[Task, Call]], limit: int | None
    ) -> list[tuple[Any, BaseException | None]]:
        """Run the calls together; if that fails, each alone. Return the output or the error of each."""
        stage, key = chosen[0][1].stage, chosen[0][1].key
        try:
            return [(output, None) for output in self._measured(chosen, limit)]
        except DeviceLostError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a model raises ends in its task
            shared = key is not None and (len(chosen) > 1 or stage.fixed_rows is not None)
            if not shared and not isinstance(error, NotShareableError):
                return [(None, _without_memory(error))]
            failure = _Failure.of(error)
            release_frames(error)
        if failure.is_definite:
            self._mark_unshareable(stage, key, failure)
        outcomes: list[tuple[Any, BaseException | None]] = []
        for task, call in chosen:
            if not failure.is_memory and (len(chosen) == 1 or key in self._unshareable):
                call.key, call.reason = None, MISMATCH if failure.reason == UNEQUAL else failure.reason
            try:
                outcomes.append((self._measured([(task, call)])[0], None))
            except DeviceLostError:
                raise
            except Exception as error:  # noqa: BLE001 - as above
                outcomes.append((None, _without_memory(error)))
        if not failure.is_memory and all(error is None for _, error in outcomes):
            self._mark_unshareable(stage, key, failure)
        return outcomes

    def _measured(self, chosen: Sequence[tuple[Task, Call]], limit: int | None = None) -> list[Any]:
        """Run the calls together, in parts of `limit` rows, and queue the forward to be timed."""
        calls = [call for _, call in chosen]
        tasks = tuple(task for task, _ in chosen)
        stage, fallback = calls[0].stage, calls[0].reason
        account = _account(*chosen[0]) if calls[0].described else None
        rows = sum(call.rows for call in calls)
        limit = min(limit or rows, rows)
        megapixels = _megapixels(tasks)  # before images are cancelled
        mark = self._timer.start()
        outputs, sample = self._within_memory(calls, tasks, limit)
        self._timer.stop(mark)

        def done(seconds: float) -> ForwardDone:
            return ForwardDone(stage=stage, tasks=tasks, rows=rows, seconds=seconds, fallback=fallback)

        self._untimed.append(_UntimedForward(mark, account, megapixels, sample, done))
        return outputs

    def _within_memory(
        self, calls: Sequence[Call], tasks: tuple[Task, ...], limit: int
    ) -> tuple[list[Any], int | None]:
        """Run the calls in parts of at most `limit` rows, or fewer if memory is short.

        Return the outputs, and the rows of a part if all parts are equal and none failed; else None.
        """
        stage, key = calls[0].stage, calls[0].key
        rows = sum(call.rows for call in calls)
        if stage.fixed_rows is not None:
            limit = stage.fixed_rows
        allowed = None if key is None else self._memory_limits.allowed(key)
        limit = limit if allowed is None else min(limit, allowed)
        split = repeated = False
        while True:
            too_big = ""
            try:
                outputs = stage.run(calls, limit)
            except DeviceMemoryError as error:
                too_big = str(error) or "out of memory"
                release_frames(error)
            if not too_big:
                if key is not None:
                    self._memory_limits.fitted(key, limit)
                return outputs, None if split or key is None or rows % limit else limit
            split = True
            stage.free_memory()
            self._short_of_memory.add(stage)
            for call in calls:
                _describe(call)
            key = calls[0].key
            smaller = limit // 2 if key is not None else 0
            if smaller == 0 and not repeated:  # it may fit now that memory was released
                repeated = True
                continue
            self._observe(ForwardSplit(stage=stage, tasks=tasks, rows=limit, max_rows=smaller))
            if smaller == 0:
                return self._run_in_tiles(calls, too_big), None
            self._memory_limits.too_many(key, limit)
            limit = smaller

    def _run_in_tiles(self, calls: Sequence[Call], too_big: str) -> list[Any]:
        """Run calls of which not even one row fits. Raises `DeviceMemoryError` with the first error's message."""
        try:
            return [call.stage.run_in_tiles(call) for call in calls]
        except DeviceMemoryError as error:
            release_frames(error)
        raise DeviceMemoryError(too_big)

    def _mark_unshareable(self, stage: Stage, key: Hashable | None, failure: _Failure) -> None:
        """Record that calls with this key can't share a forward."""
        if key is None or key in self._unshareable:
            return
        self._unshareable.add(key, failure.reason)
        _log.warning(
            "calls of %s can't share forwards (%s) and run one by one: %s",
            stage.name,
            failure.reason,
            failure.text,
        )

    def _resume(self, task: Task, switch: Callable[..., Any], *value: Any) -> None:
        """Run a task until its next call or its end."""
        call = switch(*value)
        if task.dead:
            self._end(task)
        else:
            assert isinstance(call, Call), f"a task may switch to the scheduler only with a Call, not {call!r}"
            self._waiting[task] = call

    def _end(self, task: Task) -> None:
        if isinstance(task.error, DeviceMemoryError):
            release_frames(task.error)
        if self._owner is task:
            self._owner = None
        self._ended.append(task)


def _parts(task: Task, call: Call) -> list[int]:
    """Return the row counts of the parts, increasing, in which a call for several images may be run."""
    rows_an_image, odd = divmod(call.rows, task.wanted)
    halves = [task.wanted >> power for power in range(1, task.wanted.bit_length())]
    return [] if odd else [rows_an_image * images for images in reversed(halves)]


def _megapixels(tasks: Iterable[Task]) -> float:
    """Return the megapixels of all images in a forward of these tasks."""
    return sum(task.megapixels * task.wanted for task in tasks)


def _without_memory(error: Exception) -> Exception:
    """Return an error that keeps no tensors alive if memory is short; the traceback of others is logged."""
    if isinstance(error, DeviceMemoryError):
        release_frames(error)
    return error


def _describe(call: Call) -> None:
    """Describe a call, again if it has waited for long: it may share with others that came since."""
    call.forwards_waited += 1
    if not call.described or call.forwards_waited > DESCRIBED_FORWARDS:
        call.described, call.forwards_waited, call.key, call.reason = True, 0, None, ""
        call.stage.describe(call)


def _account(task: Task, call: Call) -> Hashable:
    """Return the group to charge for the time of a call: its key, or its task if it can't share."""
    return call.key if call.key is not None else (None, task.number)
