"""A request that may be what took workers down runs alone: behind what came before it, before what came after."""

from hypothesis import given
from hypothesis import strategies as st

from imagegen_worker.core import events as ev
from imagegen_worker.core.exclusive_gate import ExclusiveGate
from tests.unit.worker.bench import Bench, resolved


def inside(bench):
    """The requests that the engine has."""
    return [int.from_bytes(bench.core.held.by_number(number).id, "big") for number in bench.jobs]


def suspect_in_the_middle():
    bench = Bench()
    for number in range(5):
        bench.work(number, alone=number == 2)
    return bench


def test_it_waits_for_what_came_before_and_holds_up_what_came_after():
    bench = suspect_in_the_middle()
    assert inside(bench) == [0, 1]
    bench.start(0, 1)
    bench.finish(0)
    assert inside(bench) == [1]
    bench.fail(1)
    assert inside(bench) == [2]
    bench.start(2)
    bench.work(7)
    assert inside(bench) == [2]
    bench.finish(2)
    assert inside(bench) == [3, 4, 7]


def test_alone_on_an_idle_worker_it_goes_at_once():
    bench = Bench()
    bench.work(1, alone=True)
    bench.work(2, alone=True)
    assert inside(bench) == [1]
    bench.finish(1)
    assert inside(bench) == [2]


def test_one_that_is_given_up_opens_the_gate():
    bench = suspect_in_the_middle()
    bench.release(2)
    assert inside(bench) == [0, 1, 3, 4]
    assert bench.cancelled == [], "what the engine never had is not cancelled there"


def test_its_deadline_holds_while_it_waits_and_while_it_runs():
    bench = Bench()
    bench.work(1)
    bench.work(2, alone=True, timeout_seconds=1.0)
    bench.work(3, timeout_seconds=2.0)
    bench.work(4)
    bench.advance(1.0)
    assert inside(bench) == [1, 3, 4]
    bench.release(1, 3, 4)
    bench.work(5, alone=True, timeout_seconds=1.0)
    bench.work(6)
    bench.start(5)
    bench.advance(1.0)
    assert inside(bench) == [6]


def test_a_drain_gives_back_what_waits_behind_it():
    bench = suspect_in_the_middle()
    bench.start(0, 1)
    bench.drain()
    assert inside(bench) == [0, 1]
    assert len(bench.core._requests.gate) == 0


@given(
    st.lists(st.tuples(st.sampled_from(["add", "add alone", "end", "give up"]), st.integers(0, 9)), max_size=40)
)
def test_whoever_is_alone_is_and_all_go_through_in_order(script):
    gate, engine, through = ExclusiveGate(), {}, []
    unfinished, alone = {}, set()

    def settle():
        for job in gate.admit(unfinished.keys()):
            engine[job.number] = job
            through.append(job.number)
        assert len(engine) == 1 or not alone & engine.keys()
        assert unfinished.keys() == engine.keys() | gate._waiting.keys()
        assert engine or not unfinished, "nothing waits for nothing"

    def end(number):
        del unfinished[number]
        assert gate.discard(number) != (engine.pop(number, None) is not None)
        settle()

    for number, (what, which) in enumerate(script):
        if what.startswith("add"):
            unfinished[number] = None
            if what == "add alone":
                alone.add(number)
            gate.add(ev.Job(number, resolved(), 0.0), exclusive=number in alone)
            settle()
        elif choice := list(engine if what == "end" else unfinished):
            end(choice[which % len(choice)])
    while unfinished:
        end(next(iter(engine)))
    assert through == sorted(through)
