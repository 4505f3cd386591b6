"""Restarts of workers, and the exit status of the supervisor."""

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
    """A core with a simulated clock, and its performed actions; a started worker runs at once."""

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
            assert self.status is None, "no action follows the exit"
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


def test_all_workers_start_at_once():
    bench = Bench(3)
    assert bench.starts == [(0, 100.0), (1, 100.0), (2, 100.0)]
    assert bench.core.next_deadline() is None


@pytest.mark.parametrize("status", [70, 1, 69, 71, 137, 139, 3])
def test_a_dead_worker_is_restarted_without_effect_on_the_others(status):
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


def test_restart_delays_double_up_to_the_maximum():
    bench = Bench(1)
    for _ in range(7):
        bench.exited(0, 1)
        bench.advance(8.0)
    # Each death is 8 seconds after the previous one; the restart follows it by the delay.
    at = [when - 100.0 for _, when in bench.starts]
    assert at == [0.0, 1.0, 10.0, 20.0, 32.0, 40.0, 48.0, 56.0]


def test_restart_delays_do_not_overflow():
    bench = Bench(1)
    for _ in range(2000):
        bench.exited(0, 1)
        bench.advance(8.0)
    assert len(bench.starts) == 2001


@pytest.mark.parametrize(("seconds_up", "delay"), [(59.9, 4.0), (60.0, 1.0)])
def test_a_long_run_resets_the_restart_delay(seconds_up, delay):
    bench = Bench(1)
    for _ in range(2):
        bench.exited(0, 1)
        bench.advance(bench.core.next_deadline() - bench.now)
    bench.advance(seconds_up)
    bench.exited(0, 1)
    assert bench.core.next_deadline() - bench.now == pytest.approx(delay)


@pytest.mark.parametrize(("status", "level"), [(0, logging.INFO), (2, logging.CRITICAL), (78, logging.CRITICAL)])
def test_a_permanent_exit_is_logged_once_and_not_restarted(status, level):
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
def test_the_supervisor_exits_with_the_highest_status_of_permanent_exits(statuses, worst):
    bench = Bench(2)
    for worker, status in enumerate(statuses):
        assert bench.status is None
        bench.exited(worker, status)
    assert bench.status == worst


def test_the_supervisor_runs_while_a_worker_waits_for_its_restart():
    bench = Bench(2)
    bench.exited(0, 70)
    bench.exited(1, 0)
    assert bench.status is None
    bench.advance(1.0)
    bench.exited(0, 0)
    assert bench.status == 0, "the status of a restarted worker does not count"


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_a_signal_drains_all_workers(number):
    bench = Bench(2)
    bench.signalled(number)
    assert bench.signals == [(0, DRAIN_SIGNAL), (1, DRAIN_SIGNAL)]
    bench.exited(0, 0)
    assert bench.status is None
    bench.exited(1, 0)
    assert bench.status == 0


def test_a_worker_killed_by_the_signal_before_it_has_handlers_counts_as_drained():
    bench = Bench(2)
    bench.signalled()
    bench.exited(0, 128 + DRAIN_SIGNAL)
    bench.exited(1, 128 + SIGTERM)
    assert bench.status == 0


@pytest.mark.parametrize("status", [1, 70, 137])
def test_a_worker_that_dies_during_the_drain_is_logged_and_not_restarted(status):
    bench = Bench(2)
    bench.signalled()
    bench.exited(0, status)
    bench.advance(1000)
    bench.exited(1, 0)
    assert len(bench.starts) == 2
    assert bench.status == status
    assert any(line.level == logging.ERROR and line.worker == 0 for line in bench.log)


def test_no_worker_is_started_after_the_signal():
    bench = Bench(2)
    bench.exited(0, 70)
    bench.exited(1, 78)
    bench.signalled()
    assert bench.status == 0
    assert bench.core.next_deadline() is None


def test_a_second_signal_kills_the_workers():
    bench = Bench(3)
    bench.signalled()
    bench.exited(1, 0)
    bench.signals.clear()
    bench.signalled(SIGINT)
    assert bench.signals == [(0, SIGKILL), (2, SIGKILL)]
    assert bench.status == 128 + SIGINT


def test_the_drain_signal_never_kills():
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
def test_workers_are_independent(deaths):
    """A worker is started as often with other workers as without them."""
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
