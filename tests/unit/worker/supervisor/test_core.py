"""When workers are started again, when not, and with what status the supervisor ends."""

import logging
from signal import SIGINT, SIGKILL, SIGTERM

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegen_worker.core.events import Exit, Tick
from imagegen_worker.supervisor.core import (
    DRAIN_SIGNAL,
    Exited,
    LogEvent,
    RestartPolicy,
    Signal,
    Signalled,
    Start,
    SupervisorCore,
)

POLICY = RestartPolicy(first_delay=1.0, max_delay=8.0, reset_after=60.0)


class Bench:
    """A core, a clock, and what became of the actions; a started worker counts as running at once."""

    def __init__(self, workers):
        self.now = 100.0
        self.core = SupervisorCore(workers, POLICY, self.now)
        self.starts = []
        self.running = set()
        self.signals = []
        self.log = []
        self.status = None
        self.advance(0.0)

    def do(self, actions):
        for action in actions:
            assert self.status is None, "nothing comes after the exit"
            match action:
                case Start(worker):
                    assert worker not in self.running
                    self.running.add(worker)
                    self.starts.append((worker, self.now))
                case Signal(worker, number):
                    assert worker in self.running
                    self.signals.append((worker, number))
                case LogEvent():
                    self.log.append(action)
                case Exit(status):
                    self.status = status

    def advance(self, seconds):
        end = self.now + seconds
        while (due := self.core.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.do(self.core.handle(Tick(), self.now))
        self.now = end

    def exited(self, worker, status):
        self.running.discard(worker)
        self.do(self.core.handle(Exited(worker, status), self.now))

    def signalled(self, number=SIGTERM):
        self.do(self.core.handle(Signalled(number), self.now))


def test_all_start_at_once():
    bench = Bench(3)
    assert bench.starts == [(0, 100.0), (1, 100.0), (2, 100.0)]
    assert bench.core.next_deadline() is None


@pytest.mark.parametrize("status", [70, 1, 69, 71, 137, 139, 3])
def test_a_dead_worker_is_started_again_and_nobody_else_is_touched(status):
    bench = Bench(3)
    bench.advance(10)
    bench.exited(1, status)
    bench.advance(0.99)
    assert len(bench.starts) == 3
    bench.advance(0.01)
    assert bench.starts[3:] == [(1, 111.0)]
    assert not bench.signals
    (line,) = bench.log
    assert (line.level, line.worker, line.fields["status"]) == (logging.ERROR, 1, status)


def test_waits_grow_to_a_bound():
    bench = Bench(1)
    for _ in range(7):
        bench.exited(0, 1)
        bench.advance(8.0)
    # Each death comes 8 seconds after the last; the start lies its wait after that.
    at = [when - 100.0 for _, when in bench.starts]
    assert at == [0.0, 1.0, 10.0, 20.0, 32.0, 40.0, 48.0, 56.0]


def test_waits_do_not_overflow():
    bench = Bench(1)
    for _ in range(2000):
        bench.exited(0, 1)
        bench.advance(8.0)
    assert len(bench.starts) == 2001


@pytest.mark.parametrize(("up", "wait"), [(59.9, 4.0), (60.0, 1.0)])
def test_a_worker_that_stayed_up_begins_anew(up, wait):
    bench = Bench(1)
    for _ in range(2):
        bench.exited(0, 1)
        bench.advance(bench.core.next_deadline() - bench.now)
    bench.advance(up)
    bench.exited(0, 1)
    assert bench.core.next_deadline() - bench.now == pytest.approx(wait)


@pytest.mark.parametrize(("status", "level"), [(0, logging.INFO), (2, logging.CRITICAL), (78, logging.CRITICAL)])
def test_a_permanent_end_is_said_once_and_not_repeated(status, level):
    bench = Bench(2)
    bench.exited(0, status)
    bench.advance(10_000)
    assert len(bench.starts) == 2
    (line,) = bench.log
    assert (line.level, line.worker, line.fields["status"]) == (level, 0, status)
    assert bench.status is None


@pytest.mark.parametrize(
    ("statuses", "worst"), [((0, 0), 0), ((0, 2), 2), ((78, 2), 78), ((2, 0), 2), ((78, 78), 78)]
)
def test_when_all_have_ended_for_good_the_worst_status_is_ours(statuses, worst):
    bench = Bench(2)
    for worker, status in enumerate(statuses):
        assert bench.status is None
        bench.exited(worker, status)
    assert bench.status == worst


def test_a_worker_that_waits_for_its_start_keeps_the_supervisor():
    bench = Bench(2)
    bench.exited(0, 70)
    bench.exited(1, 0)
    assert bench.status is None
    bench.advance(1.0)
    bench.exited(0, 0)
    assert bench.status == 0, "a death that was made good does not count"


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_a_signal_drains_all(number):
    bench = Bench(2)
    bench.signalled(number)
    assert bench.signals == [(0, DRAIN_SIGNAL), (1, DRAIN_SIGNAL)]
    bench.exited(0, 0)
    assert bench.status is None
    bench.exited(1, 0)
    assert bench.status == 0


def test_a_worker_too_young_to_catch_the_signal_has_drained_too():
    bench = Bench(2)
    bench.signalled()
    bench.exited(0, 128 + DRAIN_SIGNAL)
    bench.exited(1, 128 + SIGTERM)
    assert bench.status == 0


@pytest.mark.parametrize("status", [1, 70, 137])
def test_a_worker_that_dies_in_the_drain_is_told_of_and_stays_dead(status):
    bench = Bench(2)
    bench.signalled()
    bench.exited(0, status)
    bench.advance(1000)
    bench.exited(1, 0)
    assert len(bench.starts) == 2
    assert bench.status == status
    assert any(line.level == logging.ERROR and line.worker == 0 for line in bench.log)


def test_nobody_is_started_after_the_signal():
    bench = Bench(2)
    bench.exited(0, 70)
    bench.exited(1, 78)
    bench.signalled()
    assert bench.status == 0
    assert bench.core.next_deadline() is None


def test_a_second_signal_kills():
    bench = Bench(3)
    bench.signalled()
    bench.exited(1, 0)
    bench.signals.clear()
    bench.signalled(SIGINT)
    assert bench.signals == [(0, SIGKILL), (2, SIGKILL)]
    assert bench.status == 128 + SIGINT


def test_the_signal_that_only_drains_never_kills():
    bench = Bench(2)
    bench.signalled(DRAIN_SIGNAL)
    assert bench.signals == [(0, DRAIN_SIGNAL), (1, DRAIN_SIGNAL)]
    bench.signalled(DRAIN_SIGNAL)
    bench.signalled(SIGTERM)
    bench.signalled(DRAIN_SIGNAL)
    assert len(bench.signals) == 2
    bench.signalled(SIGTERM)
    assert bench.signals[2:] == [(0, SIGKILL), (1, SIGKILL)]
    assert bench.status == 128 + SIGTERM


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0, 1, 2, 70, 78, 137]), st.floats(0, 100))))
def test_workers_do_not_know_of_each_other(deaths):
    """A worker's starts among others are those that it has alone."""
    together, alone = Bench(3), [Bench(1) for _ in range(3)]
    for worker, status, seconds in deaths:
        for bench in (together, *alone):
            if bench.status is None:
                bench.advance(seconds)
        if worker in together.running:
            together.exited(worker, status)
            alone[worker].exited(0, status)
        assert together.running == {n for n, bench in enumerate(alone) if bench.running}
        if together.status is not None:
            break
    for number, bench in enumerate(alone):
        assert len([1 for who, _ in together.starts if who == number]) == len(bench.starts)
