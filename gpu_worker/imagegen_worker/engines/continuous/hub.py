"""Pipeline calls on greenlets meet here: their calls of a model wait, share one forward, and go on.

A pipeline call is a plain function that runs on a greenlet of its own, a `Task`. Where it would call a model it
calls `rendezvous`, which switches to the hub. Each `Hub.step` picks calls that can share, has their stage run one
forward for them, and resumes each task with its part until it calls again or ends. Nothing here knows torch.

A forward changes no state. So one that runs out of memory is run again in smaller parts, and one that raises
anything else is run again call by call, which finds the guilty and lets the others go on.
"""

import logging
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cachetools import FIFOCache

from imagegen_worker.backends import DeviceLostError, DeviceMemoryError, StoppedError
from imagegen_worker.engines.continuous.calls import Call, NotJoinableError, Stage, Task
from imagegen_worker.engines.continuous.fairness import FairTurns
from imagegen_worker.engines.continuous.limits import MemoryCaps, RowCosts
from imagegen_worker.engines.continuous.timing import Timer, WallTimer

MAX_APART = 4096
"""Keys remembered as not joinable; the oldest are forgotten, and tried again."""
MAX_AHEAD = 2
"""Forwards that may be under way on the device before the hub waits for the oldest."""
CLEAR_GAIN = 0.1
"""How much faster the rows of a call must be when they are run in parts."""
MAX_THROWS = 8
"""Times that a task may catch the exception which is to end it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardDone:
    """A forward (or several, after a split) for these tasks took `seconds` on the device.

    `fallback` says why a call went alone that could not share; "" if it could, or if there was no need.
    """

    stage: Stage
    tasks: tuple[Task, ...]
    rows: int
    seconds: float
    fallback: str = ""

    @property
    def images(self) -> int:
        """How many images shared it."""
        return sum(task.wanted for task in self.tasks)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardSplit:
    """A forward of `rows` rows did not fit, and goes again in parts of `max_rows`; 0: not even one row fits."""

    stage: Stage
    tasks: tuple[Task, ...]
    rows: int
    max_rows: int


HubEvent = ForwardDone | ForwardSplit


@dataclass(slots=True)
class _Group:
    """Calls that can share a forward, oldest task first."""

    key: Hashable | None
    calls: list[tuple[Task, Call]] = field(default_factory=list)


@dataclass(slots=True)
class _Running:
    """A forward whose time is not known yet."""

    mark: Any
    account: Hashable | None
    sample: int | None
    """Rows of each of its equal parts, if its time tells something about them."""
    charged: float
    done: Callable[[float], ForwardDone]


class Hub:
    """Runs tasks, one forward a `step`. All of it happens on the thread and greenlet that made it."""

    def __init__(
        self,
        *,
        observe: Callable[[HubEvent], None] = lambda event: None,
        timer: Timer | None = None,
        turns: FairTurns | None = None,
        caps: MemoryCaps | None = None,
        costs: RowCosts | None = None,
    ) -> None:
        self._observe = observe
        self._timer = timer or WallTimer()
        self._turns = turns or FairTurns()
        self._caps = caps or MemoryCaps()
        self._costs = costs or RowCosts()
        self._waiting: dict[Task, Call] = {}
        self._ended: list[Task] = []
        self._running: deque[_Running] = deque()
        self._apart: FIFOCache[Hashable, str] = FIFOCache(MAX_APART)
        self._tight: set[Stage] = set()
        self._owner: Task | None = None
        self._started = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def start(
        self, work: Callable[[], Any], *, tag: Any = None, adapters: Hashable = None, images: int = 1
    ) -> Task:
        """Run `work`, which makes `images` images, on a greenlet of its own until its first call, or its end."""
        self._started += 1
        task = Task(work, number=self._started, tag=tag, adapters=adapters, images=images)
        self._resume(task, task.switch)
        return task

    def cancel(self, task: Task, error: BaseException | None = None) -> None:
        """Throw `error` (`StoppedError`, if none is given) into a task where it waits, which ends it."""
        for _ in range(MAX_THROWS):
            if self._waiting.pop(task, None) is None:
                return
            self._resume(task, task.throw, error or StoppedError())
        # It catches whatever comes and calls again. Left alone it is collected, which ends it for good.
        self._waiting.pop(task, None)
        task.error = error or StoppedError()
        self._end(task)

    def ended(self) -> list[Task]:
        """Return the tasks that have ended since this was last asked, with `result` or `error`."""
        ended, self._ended = self._ended, []
        return ended

    def step(self) -> bool:
        """Run one forward and resume the tasks that it was for; return False if no call waits.

        Raises `DeviceLostError`; every other error goes to the tasks it concerns.
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
        """Account for the forwards whose time is known by now; with `wait` for all of them."""
        while self._running:
            running = self._running[0]
            seconds = self._timer.seconds(running.mark, wait=wait or len(self._running) > MAX_AHEAD)
            if seconds is None:
                return
            self._running.popleft()
            done = running.done(seconds)
            for task in done.tasks:
                task.seconds += seconds * task.wanted / done.images
                task.company = max(task.company, done.images)
            if done.stage.is_denoiser and running.account is not None:
                self._turns.charge(running.account, seconds - running.charged)
                if running.sample is not None:
                    self._costs.observe(running.account, running.sample, seconds * running.sample / done.rows)
            self._observe(done)

    # ---- who is next ---------------------------------------------------------------------------------------

    def _choose(self) -> tuple[list[tuple[Task, Call]], int | None]:
        """Return the calls of the next forward, at most as many as fit and pay; and see `_how_many`."""
        if len(self._waiting) == 1:
            (alone,) = self._waiting.items()
            stage = alone[1].stage
            if stage.exclusive:
                self._own(alone[0])
            if alone[0].images == 1 and stage.fixed_rows is None and stage not in self._tight:
                return [alone], None
        groups: dict[Hashable, _Group] = {}
        urgent: dict[Hashable, _Group] = {}
        for task, call in sorted(self._waiting.items(), key=lambda item: item[0].number):
            if call.stage.exclusive and not self._own(task):
                continue
            _describe(call)
            if call.key is not None and (reason := self._apart.get(call.key)) is not None:
                call.key, call.reason = None, reason
            of = groups if call.stage.is_denoiser else urgent
            of.setdefault(_account(task, call), _Group(call.key)).calls.append((task, call))
        # What comes before the steps lets a request join; what comes after lets it leave. Both are short.
        if urgent:
            group = next(iter(urgent.values()))
        elif groups:
            group = groups[self._turns.choose({key: len(group.calls) for key, group in groups.items()})]
        else:
            return [], None
        count, limit = self._how_many(group)
        return group.calls[:count], limit

    def _own(self, task: Task) -> bool:
        """Whether the task has, or now gets, the stages that may keep state to itself."""
        if self._owner is None:
            self._owner = task
        return self._owner is task

    def _how_many(self, group: _Group) -> tuple[int, int | None]:
        """Return how many calls of the group go into the next forward, the oldest first.

        The second is the rows of a part, where even the first call is to be run in parts because less pays better.
        """
        if group.key is None:
            return 1, None
        sizes = []
        rows = 0
        for _, call in group.calls:
            rows += call.rows
            sizes.append(rows)
        stage = group.calls[0][1].stage
        cap = stage.fixed_rows or self._caps.allowed(group.key)
        fitting = [size for size in sizes if cap is None or size <= cap] or sizes[:1]
        if stage.fixed_rows is not None or not stage.is_denoiser:
            return len(fitting), None
        best = self._costs.choose(group.key, fitting)
        if best > sizes[0]:
            return sizes.index(best) + 1, None
        # A call in parts lets nobody go earlier: it must pay clearly.
        part = self._costs.choose(group.key, [*_parts(*group.calls[0]), best], gain=-CLEAR_GAIN)
        return 1, None if part == best else part

    # ---- one forward ---------------------------------------------------------------------------------------

    def _forward(
        self, chosen: Sequence[tuple[Task, Call]], limit: int | None
    ) -> list[tuple[Any, BaseException | None]]:
        """Run the calls together; if that fails, each for itself. Return output or error of each."""
        stage, key = chosen[0][1].stage, chosen[0][1].key
        try:
            return [(output, None) for output in self._measured(chosen, limit)]
        except DeviceLostError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a model raises ends in its task
            joined = key is not None and (len(chosen) > 1 or stage.fixed_rows is not None)
            if not joined and not isinstance(error, NotJoinableError):
                return [(None, error)]
            together = error
        if isinstance(together, NotJoinableError):
            self._keep_apart(stage, key, together.reason, together)
        outcomes: list[tuple[Any, BaseException | None]] = []
        for task, call in chosen:
            if not isinstance(together, DeviceMemoryError) and (len(chosen) == 1 or key in self._apart):
                call.key, call.reason = None, self._apart.get(key, "error")
            try:
                outcomes.append((self._measured([(task, call)])[0], None))
            except DeviceLostError:
                raise
            except Exception as error:  # noqa: BLE001 - as above
                outcomes.append((None, error))
        if not isinstance(together, DeviceMemoryError) and all(error is None for _, error in outcomes):
            self._keep_apart(stage, key, "error", together)
        return outcomes

    def _measured(self, chosen: Sequence[tuple[Task, Call]], limit: int | None = None) -> list[Any]:
        """Run the calls together, in parts of `limit` rows, and have the time accounted for once it is known."""
        calls = [call for _, call in chosen]
        tasks = tuple(task for task, _ in chosen)
        stage, fallback = calls[0].stage, calls[0].reason
        account = _account(*chosen[0]) if calls[0].described else None
        rows = sum(call.rows for call in calls)
        limit = min(limit or rows, rows)
        charged = 0.0
        if stage.is_denoiser and account is not None:
            # On account: the time of a forward may be known only after the next has begun.
            charged = (self._costs.estimate(account, limit) or 0.0) * rows / limit
            self._turns.charge(account, charged)
        mark = self._timer.start()
        outputs, sample = self._within_memory(calls, tasks, limit)
        self._timer.stop(mark)

        def done(seconds: float) -> ForwardDone:
            return ForwardDone(stage=stage, tasks=tasks, rows=rows, seconds=seconds, fallback=fallback)

        self._running.append(_Running(mark, account, sample, charged, done))
        return outputs

    def _within_memory(
        self, calls: Sequence[Call], tasks: tuple[Task, ...], limit: int
    ) -> tuple[list[Any], int | None]:
        """Run the calls in as many parts of at most `limit` rows as memory asks for.

        Return the outputs, and the rows of a part if the time tells about them: all are alike, and none failed.
        """
        stage, key = calls[0].stage, calls[0].key
        rows = sum(call.rows for call in calls)
        if stage.fixed_rows is not None:
            limit = stage.fixed_rows
        allowed = None if key is None else self._caps.allowed(key)
        limit = limit if allowed is None else min(limit, allowed)
        split = False
        while True:
            too_big = ""
            try:
                outputs = stage.run(calls, limit)
            except DeviceMemoryError as error:
                too_big = str(error) or "out of memory"  # and no more: its frames hold tensors that are in the way
            if not too_big:
                if key is not None:
                    self._caps.fitted(key, limit)
                return outputs, None if split or key is None or rows % limit else limit
            split = True
            stage.free_memory()
            self._tight.add(stage)
            for call in calls:
                _describe(call)
            key = calls[0].key
            smaller = limit // 2 if key is not None else 0
            self._observe(ForwardSplit(stage=stage, tasks=tasks, rows=limit, max_rows=smaller))
            if smaller == 0:
                raise DeviceMemoryError(too_big)
            self._caps.too_many(key, limit)
            limit = smaller

    def _keep_apart(self, stage: Stage, key: Hashable | None, reason: str, error: Exception) -> None:
        """Remember that calls with this key can't share a forward."""
        if key is None or key in self._apart:
            return
        self._apart[key] = reason
        _log.warning("calls of %s can't share forwards (%s) and go one by one: %s", stage.name, reason, error)

    def _resume(self, task: Task, switch: Callable[..., Any], *value: Any) -> None:
        """Let a task run until its next call or its end."""
        call = switch(*value)
        if task.dead:
            self._end(task)
        else:
            assert isinstance(call, Call), f"a task may switch to the hub only with a Call, not {call!r}"
            self._waiting[task] = call

    def _end(self, task: Task) -> None:
        if self._owner is task:
            self._owner = None
        self._ended.append(task)


def _parts(task: Task, call: Call) -> list[int]:
    """Return the row counts, growing, in which a call for several images may be run part by part."""
    rows_an_image, odd = divmod(call.rows, task.wanted)
    halves = [task.wanted >> power for power in range(1, task.wanted.bit_length())]
    return [] if odd else [rows_an_image * images for images in reversed(halves)]


def _describe(call: Call) -> None:
    if not call.described:
        call.described = True
        call.stage.describe(call)


def _account(task: Task, call: Call) -> Hashable:
    """Return what time is charged to: those who can share, or the one who can't."""
    return call.key if call.key is not None else (None, task.number)
