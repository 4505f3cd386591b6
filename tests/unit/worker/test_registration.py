"""Registration: READY, sessions, epochs, rejections and silent brokers; with one broker and two."""

import math
from dataclasses import replace

import pytest

from imagegen_protocol import ProtocolError, encode
from imagegen_protocol.limits import (
    MAX_HEADER_BYTES,
    MAX_SECONDS_PER_IMAGE,
    MIN_HEARTBEAT_INTERVAL_SECONDS,
    MIN_SECONDS_PER_IMAGE,
)
from imagegen_protocol.messages import Error, Ready, Result, WorkerHeartbeat
from imagegen_worker.core import events as ev
from tests.unit.worker.bench import EPOCH, MODEL, Bench, rid

OTHER_EPOCH = b"o" * 16


def test_nothing_is_sent_before_the_model_is_loaded():
    bench = Bench(warm=False)
    bench.advance(10.0)
    bench.beat(session=0)
    assert bench.sent == []
    bench.event(ev.EngineReady((MODEL,), "cpu", 0.5))
    (ready,) = bench.messages(Ready)
    assert (ready.name, ready.models, ready.device, ready.capacity) == ("worker", ["m"], "cpu", 4)
    assert (ready.gpu_id, ready.gpu_uuid, ready.version) == (0, "GPU-1", "1.2.3")
    assert ready.seconds_per_image == 0.5
    assert ready.queued == ready.running == ready.finished == []


def test_ready_is_sent_again_every_interval_until_it_is_answered():
    bench = Bench(registered=False)
    bench.advance(3.0)
    assert len(bench.messages(Ready)) == 3
    bench.beat()
    bench.sent.clear()
    bench.beats(3.0)
    assert bench.messages(Ready) == []
    assert len(bench.messages(WorkerHeartbeat)) == 3


def test_a_broker_that_never_answers_is_logged_once():
    bench = Bench(registered=False)
    bench.advance(120.0)
    assert bench.warnings() == ["broker did not answer, retrying"]
    bench.beat()
    assert bench.core.registered == 1


def test_an_answer_within_the_time_causes_no_warning():
    bench = Bench(registered=False)
    bench.advance(1.5)
    bench.beat()
    assert bench.warnings() == []


def test_heartbeats_echo_beat_and_session_at_the_announced_interval():
    bench = Bench()
    bench.beat(session=1, beat=9, interval_seconds=0.25)
    bench.advance(0.5)
    beats = bench.messages(WorkerHeartbeat)
    assert len(beats) == 2
    assert {(beat.session, beat.beat, beat.state) for beat in beats} == {(1, 9, "ready")}


def test_the_shortest_interval_leaves_time_until_the_next_deadline():
    bench = Bench()
    bench.beat(interval_seconds=MIN_HEARTBEAT_INTERVAL_SECONDS, liveness=1)
    assert bench.core.next_deadline() > bench.now


@pytest.mark.parametrize(
    ("measured", "reported"),
    [
        (None, None),
        (0.5, 0.5),
        (0.0, None),
        (-1.0, None),
        (math.nan, None),
        (math.inf, None),
        (1e-300, MIN_SECONDS_PER_IMAGE),
        (1e300, MAX_SECONDS_PER_IMAGE),
    ],
)
def test_the_reported_speed_is_within_the_range_of_the_protocol(measured, reported):
    bench = Bench()
    bench.beat()
    bench.event(ev.CallDone(requests=1, images=1, steps=1, seconds=1.0, seconds_per_image=measured))
    bench.advance(1.0)
    assert bench.messages(WorkerHeartbeat)[-1].seconds_per_image == reported


def test_a_session_of_0_causes_ready_at_once():
    bench = Bench()
    bench.beat(session=0)
    assert len(bench.messages(Ready)) == 1
    bench.beat(session=0)
    assert len(bench.messages(Ready)) == 1, "a READY is already in transit"
    bench.advance(1.0)
    assert len(bench.messages(Ready)) == 2


@pytest.mark.parametrize(("session", "epoch"), [(2, EPOCH), (1, OTHER_EPOCH)])
def test_a_new_session_or_epoch_causes_a_ready_that_lists_all_requests(session, epoch):
    bench = Bench()
    running, queued = bench.work(1), bench.work(2)
    bench.start(1)
    bench.sent.clear()
    bench.beat(session=session, epoch=epoch)
    (ready,) = bench.messages(Ready)
    assert (ready.running, ready.queued) == ([running], [queued])
    bench.beat(session=session + 1, epoch=epoch)
    bench.sent.clear()
    bench.advance(1.0)
    assert [beat.session for beat in bench.messages(WorkerHeartbeat)] == [session + 1]


def test_a_broker_that_is_silent_for_three_intervals_is_lost_and_sent_ready():
    bench = Bench()
    bench.advance(2.9)
    assert bench.core.registered == 1
    bench.advance(0.2)
    assert bench.core.registered == 0
    assert bench.warnings() == ["broker lost"]
    assert len(bench.messages(Ready)) == 1
    bench.advance(60.0)
    assert bench.warnings() == ["broker lost"], "the loss is logged once"


def test_any_message_counts_as_a_sign_of_life():
    bench = Bench()
    for _ in range(5):
        bench.advance(2.0)
        bench.release(99)
    assert bench.core.registered == 1


def test_a_rejected_name_is_logged_once_and_retried():
    bench = Bench(registered=False)
    for _ in range(10):
        bench.advance(1.0)
        bench.refuse()
    assert bench.warnings() == ["refused by broker"]
    assert len(bench.messages(Ready)) == 10
    bench.beat()
    assert bench.core.registered == 1


def test_a_registered_worker_whose_name_is_taken_sends_ready_after_an_interval():
    bench = Bench()
    bench.refuse()
    assert bench.core.registered == 0
    assert bench.messages(Ready) == []
    bench.advance(1.0)
    assert len(bench.messages(Ready)) == 1


def test_an_invalid_message_is_answered_with_an_error():
    bench = Bench()
    problem = ProtocolError("unknown type")
    problem.request_id = rid(5)
    bench.event(ev.Malformed(0, problem))
    (error,) = bench.messages(Error)
    assert (error.code, error.message, error.request_id) == ("protocol_error", "unknown type", rid(5))


def test_all_brokers_receive_the_same_report():
    bench = Bench(brokers=2)
    first, second = bench.work(1, broker=0), bench.work(2, broker=1)
    bench.start(1)
    bench.sent.clear()
    bench.advance(1.0)
    for broker in (0, 1):
        beat = bench.messages(WorkerHeartbeat, broker)[-1]
        assert (beat.running, beat.queued) == ([first], [second])


def test_each_broker_receives_the_answers_to_its_own_requests():
    bench = Bench(brokers=2)
    bench.work(1, broker=0)
    bench.work(2, broker=1)
    bench.start(1, 2)
    bench.finish(1)
    bench.finish(2)
    assert [m.request_id for m in bench.messages(Result, 0)] == [rid(1)]
    assert [m.request_id for m in bench.messages(Result, 1)] == [rid(2)]


def test_another_broker_takes_over_the_requests_of_a_dead_one():
    bench = Bench(brokers=2)
    bench.work(1, broker=0)
    bench.start(1)
    bench.beats(5.0, broker=1)
    assert bench.core.registered == 1
    bench.finish(1)
    assert bench.messages(Result, 0) == bench.messages(Result, 1) == []
    bench.resend(1, broker=1)
    assert len(bench.messages(Result, 1)) == 1
    bench.release(1, broker=1)
    assert bench.states() == ([], [], [])


def test_a_silent_broker_is_reconnected_to():
    bench = Bench(registered=False)
    bench.advance(2.5)
    assert bench.reconnects == []
    bench.advance(20.0)
    assert bench.reconnects == [0] * 7, "every three intervals"
    bench.beat()
    bench.reconnects.clear()
    bench.beats(5.0)
    assert bench.reconnects == []
    bench.advance(3.0)
    assert bench.reconnects == [0]


def test_a_broker_that_rejects_the_worker_is_not_reconnected_to():
    bench = Bench(registered=False)
    for _ in range(20):
        bench.advance(1.0)
        bench.receive(Error(code="worker_name_taken", message="taken"))
    assert bench.reconnects == []


def test_a_second_endpoint_of_a_broker_is_unused_until_the_first_is_lost():
    bench = Bench(brokers=2, registered=False)
    bench.beat(broker=0)
    bench.beat(broker=1, session=2, epoch=EPOCH)
    assert bench.core.registered == 1
    assert bench.warnings() == ["duplicate broker endpoint ignored"]
    bench.sent.clear()
    for _ in range(10):
        bench.advance(1.0)
        bench.beat(broker=0)
    assert len(bench.messages(WorkerHeartbeat, broker=0)) == 10
    assert not bench.messages(Ready, broker=1)
    bench.advance(4.0)
    assert bench.messages(Ready, broker=1)
    bench.beat(broker=1, session=3, epoch=EPOCH)
    assert bench.core.registered == 1


def test_a_second_endpoint_is_unused_while_the_first_registers_again():
    bench = Bench(brokers=2, registered=False)
    bench.beat(broker=0)
    bench.beat(broker=1, session=2, epoch=EPOCH)
    bench.sent.clear()
    bench.beat(broker=0, session=0)  # the second registration replaced the first
    bench.advance(1.0)
    assert bench.messages(Ready, broker=0)
    assert not bench.messages(Ready, broker=1)
    bench.beat(broker=0, session=3)
    assert bench.core.registered == 1


def test_a_second_endpoint_is_unused_if_the_first_registers_later():
    bench = Bench(brokers=2, registered=False)
    bench.beat(broker=1, epoch=EPOCH)
    bench.beat(broker=0, session=2)
    bench.beat(broker=1, session=1, epoch=EPOCH)
    bench.sent.clear()
    bench.advance(1.0)
    bench.beat(broker=0, session=2)
    assert not bench.messages(Ready, broker=1)
    assert not bench.messages(WorkerHeartbeat, broker=1)
    assert bench.core.registered == 1


def test_further_parts_of_the_capabilities_follow_the_registration():
    models = tuple(replace(MODEL, name=f"{index:0>100}") for index in range(200))
    bench = Bench(warm=False)
    bench.event(ev.EngineReady(models, "cpu", None))
    (first,) = [frames for _, message, frames in bench.sent if isinstance(message, Ready)]
    bench.sent.clear()
    bench.beat()
    further = [frames for _, message, frames in bench.sent if isinstance(message, Ready)]
    assert len(further) >= 2
    assert first not in further
    assert all(len(encode(message)) <= MAX_HEADER_BYTES for _, message, _ in bench.sent)
    bench.sent.clear()
    bench.beats(3.0)
    assert bench.messages(Ready) == []


def test_a_model_that_is_loaded_before_the_registration_is_reported():
    bench = Bench(warm=False)
    bench.event(ev.EngineReady((MODEL,), "cpu", None, served=("m", "other")))
    bench.event(ev.ModelLoaded(replace(MODEL, name="other"), ("m", "other")))
    bench.sent.clear()
    bench.beat()
    assert len(bench.messages(Ready)) == 1
