"""Latencies are counted from when requests should have gone out, and survive the way to another process."""

import math

import pytest

pytest.importorskip("hdrh")

from benchmarks.latency import Latencies, Recorder, evenly, merged, open_loop, poisson, table


class Clock:
    """Time that passes only when somebody waits or works."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def pass_(self, seconds):
        self.now += seconds


def test_percentiles_are_within_a_thousandth():
    latencies = Latencies()
    for millisecond in range(1, 1001):
        latencies.record(millisecond / 1000)
    assert len(latencies) == 1000
    for share in (50, 90, 99, 100):
        assert latencies.percentile(share) == pytest.approx(share / 100, rel=2e-3)
    assert latencies.mean() == pytest.approx(0.5005, rel=2e-3)
    assert list(latencies.summary()) == ["count", "mean", "p50", "p90", "p99", "p99.9", "max"]
    shares = [share for share, _ in latencies.tail(3)]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(99.9)


def test_what_is_out_of_range_counts_at_its_end():
    latencies = Latencies()
    latencies.record(0.0)
    latencies.record(1e6)
    assert len(latencies) == 2
    assert latencies.percentile(1) == pytest.approx(1e-6)
    assert latencies.percentile(100) == pytest.approx(3600, rel=2e-3)


def test_of_nothing_there_is_nothing():
    assert math.isnan(Latencies().percentile(50))
    assert math.isnan(Latencies().mean())
    assert "| none | 0 |" in "\n".join(table([("none", Latencies())]))


def test_other_processes_are_added():
    parts = []
    for start in (0, 500):
        part = Latencies()
        for millisecond in range(start + 1, start + 501):
            part.record(millisecond / 1000)
        parts.append(part.encode())
    whole = merged(parts)
    assert len(whole) == 1000
    assert whole.percentile(50) == pytest.approx(0.5, rel=2e-3)


def test_a_stall_is_counted_for_all_that_should_have_gone_out_meanwhile():
    clock = Clock()
    recorder = Recorder(clock)

    def send(number, intended):
        recorder.sent(number, intended)
        # Answers come after 1 ms, but the tenth holds everything up for a second.
        clock.pass_(1.0 if number == 10 else 0.001)
        recorder.answered(number)

    open_loop(evenly(100, 200), send, clock.pass_, clock)
    assert len(recorder.latencies) == 200
    assert recorder.unanswered == 0
    # Some hundred requests were due in that second. A closed loop would have found one slow one of 200.
    assert recorder.latencies.percentile(75) > 0.3
    assert recorder.late.percentile(100) == pytest.approx(0.99, rel=0.01)


def test_answers_are_taken_before_each_send_even_when_late():
    clock, waits = Clock(), []

    def wait(seconds):
        waits.append(seconds)
        clock.pass_(seconds)

    open_loop([0.0, 0.0, 0.5], lambda number, intended: clock.pass_(1.0), wait, clock)
    assert len(waits) == 3


def test_poisson_times_come_from_their_seed():
    times = poisson(50, 5000, seed=3)
    assert times == poisson(50, 5000, seed=3) != poisson(50, 5000, seed=4)
    assert times == sorted(times)
    assert 5000 / times[-1] == pytest.approx(50, rel=0.1)


def test_an_answer_counts_once():
    recorder = Recorder(Clock())
    recorder.sent("a", 100.0)
    recorder.answered("a")
    with pytest.raises(KeyError):
        recorder.answered("a")
