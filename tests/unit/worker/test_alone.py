"""Exclusive requests, which may have killed workers: each runs alone, after earlier and before later requests."""

from hypothesis import given
from hypothesis import strategies as st

from imagegen_worker.core import events as ev
from imagegen_worker.core.exclusive_gate import ExclusiveGate
from tests.unit.worker.bench import Bench, resolved


def at_engine(bench):
    """Return the numbers of the requests that were sent to the engine."""
    return [int.from_bytes(bench.core.held.by_number(number).id, "big") for number in bench.jobs]


def exclusive_in_the_middle():
    bench = Bench()
    for number in range(5):
        bench.work(number, alone=number == 2)
    return bench


def test_an_exclusive_job_waits_for_earlier_jobs_and_delays_later_ones():
    bench = exclusive_in_the_middle()
    assert at_engine(bench) == [0, 1]
    bench.start(0, 1)
    bench.finish(0)
    assert at_engine(bench) == [1]
    bench.fail(1)
    assert at_engine(bench) == [2]
    bench.start(2)
    bench.work(7)
    assert at_engine(bench) == [2]
    bench.finish(2)
    assert at_engine(bench) == [3, 4, 7]


def test_an_exclusive_job_starts_at_once_on_an_idle_worker():
    bench = Bench()
    bench.work(1, alone=True)
    bench.work(2, alone=True)
    assert at_engine(bench) == [1]
    bench.finish(1)
    assert at_engine(bench) == [2]


def test_a_released_exclusive_job_no_longer_delays_later_ones():
    bench = exclusive_in_the_middle()
    bench.release(2)
    assert at_engine(bench) == [0, 1, 3, 4]
    assert bench.cancelled == [], "a job that was not sent to the engine is not cancelled there"


def test_an_exclusive_job_expires_while_it_waits_and_while_it_runs():
    bench = Bench()
    bench.work(1)
    bench.work(2, alone=True, timeout_seconds=1.0)
    bench.work(3, timeout_seconds=2.0)
    bench.work(4)
    bench.advance(1.0)
    assert at_engine(bench) == [1, 3, 4]
    bench.release(1, 3, 4)
    bench.work(5, alone=True, timeout_seconds=1.0)
    bench.work(6)
    bench.start(5)
    bench.advance(1.0)
    assert at_engine(bench) == [6]


def test_a_drain_returns_the_jobs_behind_an_exclusive_one():
    bench = exclusive_in_the_middle()
    bench.start(0, 1)
    bench.drain()
    assert at_engine(bench) == [0, 1]
    assert len(bench.core._requests.gate) == 0


@given(
    st.lists(st.tuples(st.sampled_from(["add", "add alone", "end", "give up"]), st.integers(0, 9)), max_size=40)
)
def test_exclusive_jobs_run_alone_and_all_jobs_are_admitted_in_order(script):
    gate, engine, admitted = ExclusiveGate(), {}, []
    unfinished, alone = {}, set()

    def admit():
        for job in gate.admit(unfinished.keys()):
            engine[job.number] = job
            admitted.append(job.number)
        assert len(engine) == 1 or not alone & engine.keys()
        assert unfinished.keys() == engine.keys() | gate._waiting.keys()
        assert engine or not unfinished, "jobs wait only for a running job"

    def end(number):
        del unfinished[number]
        assert gate.discard(number) != (engine.pop(number, None) is not None)
        admit()

    for number, (action, index) in enumerate(script):
        if action.startswith("add"):
            unfinished[number] = None
            if action == "add alone":
                alone.add(number)
            gate.add(ev.Job(number, resolved(), 0.0), exclusive=number in alone)
            admit()
        elif choice := list(engine if action == "end" else unfinished):
            end(choice[index % len(choice)])
    while unfinished:
        end(next(iter(engine)))
    assert admitted == sorted(admitted)
