"""Draining: queued requests are returned, running ones finish, answers are acknowledged, then GOODBYE."""

from imagegen_protocol.messages import Fetch, Goodbye, WorkerHeartbeat
from imagegen_worker.core import events as ev
from tests.unit.worker.bench import Bench, rid


def test_a_broker_drains_the_worker():
    bench = Bench()
    bench.work(1)
    bench.work(2, attempt=2)
    queued = bench.number(2)
    bench.start(1)
    bench.sent.clear()
    bench.drain()
    (returned,) = bench.answers(2)
    assert (returned.code, returned.attempt) == ("returned", 2)
    assert bench.cancelled == [queued]
    (beat,) = bench.messages(WorkerHeartbeat)
    assert (beat.state, beat.queued, beat.running) == ("draining", [], [rid(1)])
    bench.work(3)
    assert [error.code for error in bench.answers(3)] == ["returned"]
    bench.finish(1)
    assert bench.status is None, "the answer may still be lost in transit"
    bench.release(1)
    assert bench.status == 0
    assert isinstance(bench.sent[-1][1], Goodbye)
    assert bench.core.next_deadline() is None


def test_a_second_drain_has_no_effect():
    bench = Bench()
    bench.work(1)
    bench.start(1)
    bench.drain()
    bench.sent.clear()
    bench.event(ev.DrainRequested("SIGTERM"))
    assert bench.sent == []


def test_the_wait_for_acknowledgements_is_limited():
    bench = Bench(drain=30.0)
    bench.work(1)
    bench.start(1)
    bench.event(ev.DrainRequested("SIGTERM"))
    bench.beats(60.0)
    bench.finish(1)
    bench.beats(29.0)
    assert bench.status is None, "the time limit counts from the last answer"
    bench.resend(1)
    assert len(bench.answers(1)) == 2, "the answer can still be requested"
    bench.beats(1.0)
    assert bench.status == 0


def test_a_drain_lasts_while_an_answer_is_fetched():
    bench = Bench(drain=30.0)
    bench.work(1, inline_bytes=0)
    bench.start(1)
    bench.event(ev.DrainRequested("SIGTERM"))
    bench.finish(1)
    (header,) = bench.answers(1)
    for offset in range(4):
        bench.beats(20.0)
        bench.receive(Fetch(request_id=rid(1), payload_id=header.payload_id, offset=offset, length=1))
    bench.beats(29.0)
    assert bench.status is None, "the time counts from the last FETCH of further bytes"
    bench.beats(1.0)
    assert bench.status == 0


def test_an_answer_that_is_only_sent_again_does_not_extend_the_drain():
    bench = Bench(drain=30.0)
    bench.work(1)
    bench.work(2)
    bench.start(1, 2)
    bench.event(ev.DrainRequested("SIGTERM"))
    bench.finish(1)
    bench.finish(2)
    for _ in range(29):
        bench.beats(1.0)
        bench.resend(1)
    assert bench.status is None
    bench.beats(1.0)
    assert bench.status == 0


def test_an_idle_unregistered_or_loading_worker_exits_at_once():
    for bench in (Bench(), Bench(warm=False), Bench(registered=False)):
        bench.event(ev.DrainRequested("SIGTERM"))
        assert bench.status == 0


def test_all_brokers_receive_goodbye():
    bench = Bench(brokers=2)
    bench.event(ev.DrainRequested("SIGTERM"))
    assert len(bench.messages(Goodbye, 0)) == len(bench.messages(Goodbye, 1)) == 1


def test_a_broker_that_registers_a_draining_worker_receives_its_state_at_once():
    bench = Bench()
    bench.work(1)
    bench.start(1)
    bench.event(ev.DrainRequested("SIGTERM"))
    bench.beat(session=7)
    bench.sent.clear()
    bench.beat(session=8)
    assert [beat.state for beat in bench.messages(WorkerHeartbeat)] == ["draining"]


def test_the_release_of_the_last_running_request_ends_the_drain():
    bench = Bench()
    bench.work(1)
    bench.start(1)
    bench.event(ev.DrainRequested("SIGTERM"))
    bench.release(1)
    assert bench.status == 0


def test_a_returned_request_that_starts_nevertheless_is_not_answered():
    bench = Bench()
    bench.work(1)
    number = bench.number(1)
    bench.drain()
    bench.event(ev.Started((number,)))
    bench.finish_job(number)
    assert [error.code for error in bench.answers(1)] == ["returned"]
