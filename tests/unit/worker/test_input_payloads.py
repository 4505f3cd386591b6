"""Payloads of requests, which the worker fetches in chunks."""

from dataclasses import replace

import pytest

from imagegen_protocol import ProtocolError
from imagegen_protocol.limits import MAX_BODY_BYTES
from imagegen_protocol.messages import Chunk, Error, Fetch, Work, WorkerHeartbeat
from imagegen_protocol.transfers import INITIAL_WINDOW_BYTES
from imagegen_worker.core import events as ev
from imagegen_worker.core.payload_receiver import KEEP_SECONDS, MAX_ASKS
from tests.unit.worker.bench import MODEL, Bench, rid

IMAGE = {"inputs": ["image"]}
INPUT_IMAGE = bytes(range(256)) * 400
"""An input image of 102,400 bytes."""


def fetched(bench, number, image=INPUT_IMAGE, **fields):
    """Send WORK whose payload is fetched, from a broker."""
    return bench.work(number, image, body=IMAGE, fetched=True, **fields)


def test_a_request_is_queued_and_not_started_until_its_payload_has_arrived():
    bench = Bench()
    one = fetched(bench, 1)
    assert bench.states() == ([one], [], [])
    assert (bench.decoding, bench.jobs) == ({}, {})
    bench.advance(0.5)
    bench.serve(1)
    assert (bench.decoding, bench.jobs) == ({}, {})
    bench.serve()
    (decode,) = bench.decoding.values()
    assert decode.frames == (INPUT_IMAGE,)
    assert decode.request.inputs == ["image"]
    bench.decoded_job(decode.number)
    assert bench.jobs[decode.number].arrived == bench.now, "batches wait from the arrival of the whole request"


def test_a_body_alone_can_be_fetched():
    bench = Bench()
    bench.work(1, body={"prompt": "p" * 9000}, fetched=True)
    bench.serve()
    (job,) = bench.jobs.values()
    assert job.request.prompt == "p" * 9000


def test_no_more_bytes_are_requested_than_the_window():
    bench = Bench()
    for number in range(5):
        fetched(bench, number)
    assert sum(fetch.length for _, fetch in bench.fetches) == INITIAL_WINDOW_BYTES
    bench.serve()
    assert len(bench.decoding) == 5
    assert max(fetch.length for fetch in bench.messages(Fetch)) > INITIAL_WINDOW_BYTES, "the link is fast"


def test_the_last_token_is_confirmed_by_fetch_and_heartbeat():
    bench = Bench()
    fetched(bench, 1)
    bench.serve(1, token=b"1")
    assert bench.messages(Fetch)[-1].token == b"1"
    bench.serve(1, token=b"2")
    bench.advance(1.0)
    assert bench.messages(WorkerHeartbeat)[-1].token == b"2"
    bench.beat(session=0)
    bench.beat(session=2)
    bench.advance(1.0)
    assert bench.messages(WorkerHeartbeat)[-1].token == b"", "the connection is new"


def test_every_chunk_is_a_sign_of_life():
    bench = Bench()
    fetched(bench, 1)
    for _ in range(10):
        bench.advance(2.0)
        bench.serve(1)
    assert bench.reconnects == []


def test_a_message_that_is_not_valid_is_no_sign_of_life():
    bench = Bench()
    for _ in range(4):
        bench.advance(1.0)
        bench.event(ev.Malformed(0, ProtocolError("bad")))
    assert bench.reconnects == [0]


def test_a_transfer_continues_at_the_first_missing_byte_on_a_new_connection():
    bench = Bench()
    fetched(bench, 1)
    bench.serve(1)
    arrived = bench.core.held.get(rid(1)).download.received
    assert 0 < arrived < len(INPUT_IMAGE)
    bench.advance(4.0)
    assert bench.reconnects == [0]
    bench.fetches.clear()  # lost with the connection
    bench.sent.clear()
    bench.beat(session=0)
    assert bench.messages(Fetch) == [], "no FETCH is sent to a broker that does not know this worker"
    bench.beat(session=2)
    assert bench.messages(Fetch)[0].offset == arrived
    bench.serve()
    assert [decode.frames for decode in bench.decoding.values()] == [(INPUT_IMAGE,)]


def test_a_lost_chunk_is_requested_again_after_the_liveness_time():
    bench = Bench()
    fetched(bench, 1)
    bench.serve(1)
    arrived = bench.core.held.get(rid(1)).download.received
    bench.fetches.clear()
    bench.sent.clear()
    bench.beats(3.0)
    assert bench.messages(Fetch)[0].offset == arrived
    bench.serve()
    assert len(bench.decoding) == 1


def test_a_request_whose_broker_does_not_answer_is_returned():
    bench = Bench()
    fetched(bench, 1)
    bench.payloads.clear()
    bench.beats(3.0 * (1 + 2 + 4 + 8 + 16) - 1)
    assert bench.answers(1) == bench.messages(Fetch), "the FETCH is repeated"
    assert len({fetch.length for fetch in bench.messages(Fetch)}) > 1
    bench.sent.clear()
    bench.beats(1.0)
    assert [(error.code, error.message) for error in bench.messages(Error)] == [
        ("returned", "its payload did not arrive")
    ]
    assert bench.states() == ([], [], [])
    assert MAX_ASKS == 5


def test_the_count_of_unanswered_fetches_restarts_on_a_new_connection():
    bench = Bench()
    fetched(bench, 1)
    payloads, bench.payloads = bench.payloads, {}
    bench.beats(50.0)
    bench.beat(session=0)
    bench.beat(session=2)
    assert bench.core.held.get(rid(1)).download.stalls == 0
    bench.fetches.clear()
    bench.payloads = payloads
    bench.advance(0.5)
    bench.beat(session=2)
    bench.advance(2.6)
    bench.serve()
    assert len(bench.decoding) == 1


@pytest.mark.parametrize("way", ["release", "deadline", "drain", "orphan", "model"])
@pytest.mark.parametrize("waits", [False, True])
def test_a_request_that_ends_while_its_payload_arrives_frees_it(way, waits):
    bench = Bench(input_bytes=1)
    if waits:
        fetched(bench, 2)  # it uses the whole limit
    fetched(bench, 1, timeout_seconds=2.0 if way == "deadline" else None)
    bench.serve(1)
    match way:
        case "release":
            bench.release(1, 2)
        case "deadline":
            bench.beats(2.0)
            assert [error.code for error in bench.messages(Error)] == ["deadline_exceeded"]
            bench.release(2)
        case "drain":
            bench.drain()
            assert {error.code for error in bench.messages(Error)} == {"returned"}
            assert bench.status == 0
        case "orphan":
            bench.advance(70.0)
        case "model":
            bench.event(ev.ModelLoadFailed("m", "broken", ()))
            assert {error.code for error in bench.messages(Error)} == {"generation_failed"}
    assert bench.core.held.get(rid(1)) is None or bench.core.held.get(rid(1)).answer is not None
    assert bench.core._requests._receiver.reserved_bytes == 0
    bench.serve()
    assert (bench.decoding, bench.jobs) == ({}, {})


def test_work_of_another_broker_continues_the_transfer_there():
    bench = Bench(brokers=2)
    fetched(bench, 1)
    bench.serve(1)
    arrived = bench.core.held.get(rid(1)).download.received
    bench.fetches.clear()
    fetched(bench, 1, broker=1)
    assert bench.messages(Fetch, 1)[0].offset == arrived
    bench.serve()
    assert [decode.frames for decode in bench.decoding.values()] == [(INPUT_IMAGE,)]


def test_work_with_another_payload_restarts_the_transfer():
    bench = Bench()
    fetched(bench, 1)
    bench.serve(1)
    bench.fetches.clear()
    bench.sent.clear()
    fetched(bench, 1, b"longer" + INPUT_IMAGE)
    assert bench.messages(Fetch)[0].offset == 0
    bench.serve()
    assert [decode.frames for decode in bench.decoding.values()] == [(b"longer" + INPUT_IMAGE,)]


def test_work_with_an_inline_payload_ends_the_transfer():
    bench = Bench(brokers=2)
    fetched(bench, 1)
    bench.serve(1)
    bench.work(1, b"small", body=IMAGE, broker=1)
    assert [decode.frames for decode in bench.decoding.values()] == [(b"small",)]
    bench.serve()
    assert len(bench.decoding) == 1


def test_resend_of_the_broker_that_has_the_payload_continues_the_transfer():
    bench = Bench()
    fetched(bench, 1)
    bench.fetches.clear()
    bench.beats(5.0)
    assert bench.core.held.get(rid(1)).download.stalls == 1
    bench.sent.clear()
    bench.resend(1)
    assert bench.messages(Fetch)[0].offset == 0, "the broker is alive again: FETCH is sent at once"
    bench.serve()
    assert len(bench.decoding) == 1


@pytest.mark.parametrize("restarted", [False, True])
def test_resend_of_a_broker_without_the_payload_returns_the_request(restarted):
    bench = Bench(brokers=2)
    fetched(bench, 1)
    bench.serve(1)
    arrived = bench.core.held.get(rid(1)).download.received
    bench.fetches.clear()
    if restarted:
        bench.beat(session=9, epoch=b"n" * 16)
        bench.beat(session=9, epoch=b"n" * 16)
    broker = 0 if restarted else 1
    bench.sent.clear()
    bench.resend(1, broker=broker)
    assert [error.code for error in bench.messages(Error, broker)] == ["returned"]
    assert bench.states() == ([], [], [])
    bench.sent.clear()
    fetched(bench, 1, broker=broker)
    assert bench.messages(Fetch, broker)[0].offset == arrived > 0, "the received part is kept"
    bench.serve()
    assert [decode.frames for decode in bench.decoding.values()] == [(INPUT_IMAGE,)]


@pytest.mark.parametrize("way", ["time", "room", "size"])
def test_parts_of_a_returned_request_are_kept_for_a_limited_time_and_within_the_limit(way):
    bench = Bench(brokers=2, input_bytes=len(INPUT_IMAGE) + 5000)
    fetched(bench, 1)
    bench.serve(1)
    bench.resend(1, broker=1)
    receiver = bench.core._requests._receiver
    assert receiver.reserved_bytes > 5000
    bench.fetches.clear()
    match way:
        case "time":
            bench.beats(KEEP_SECONDS)
            assert receiver.reserved_bytes == 0
        case "room":
            fetched(bench, 2)
            assert receiver.reserved_bytes == len(INPUT_IMAGE) + len(bench.payloads[0, rid(2)][0])
            bench.release(2)
            bench.fetches.clear()
    bench.sent.clear()
    fetched(bench, 1, INPUT_IMAGE + b"x" if way == "size" else INPUT_IMAGE)
    assert bench.messages(Fetch)[0].offset == 0


@pytest.mark.parametrize(
    ("frame_bytes", "words"),
    [
        ([0, 5], "expected a body of 1 to 262144 bytes, got 0"),
        ([MAX_BODY_BYTES + 1], "expected a body of 1 to 262144 bytes, got 262145"),
        ([9] * 14, "inputs: at most 12 image frames are allowed, got 13"),
    ],
)
def test_a_payload_of_impossible_sizes_is_not_fetched(frame_bytes, words):
    bench = Bench()
    bench.receive(Work(request_id=rid(1), frame_bytes=frame_bytes))
    (error,) = bench.messages(Error)
    assert (error.code, error.message) == ("invalid_request", words)
    assert bench.messages(Fetch) == []


def test_empty_images_are_fetched_and_rejected_by_the_decoder():
    bench = Bench()
    fetched(bench, 1, b"")
    bench.serve()
    assert [decode.frames for decode in bench.decoding.values()] == [(b"",)]


def test_a_payload_beyond_the_limit_waits_until_another_is_decoded():
    bench = Bench(input_bytes=2 * len(INPUT_IMAGE) + 500)
    for number in (1, 2, 3):
        fetched(bench, number)
    bench.serve()
    assert [decode.number for decode in bench.decoding.values()] == [1, 2]
    assert bench.states()[0] == [rid(1), rid(2), rid(3)]
    bench.decoded_job(1)
    bench.serve()
    assert [decode.number for decode in bench.decoding.values()] == [2, 3]
    bench.fail(2, "invalid_request")
    bench.release(3)
    assert bench.core._requests._receiver.reserved_bytes == 0


def test_a_payload_larger_than_the_limit_is_received_alone():
    bench = Bench(input_bytes=100)
    fetched(bench, 1)
    fetched(bench, 2)
    bench.serve()
    assert list(bench.decoding) == [1]
    bench.decoded_job(1)
    bench.serve()
    assert list(bench.decoding) == [2]


def test_a_payload_that_waits_for_room_is_fetched_from_the_broker_that_sent_work_last():
    bench = Bench(brokers=2, input_bytes=100)
    fetched(bench, 1)
    fetched(bench, 2)
    fetched(bench, 2, broker=1)
    assert bench.messages(Fetch, 1) == []
    bench.serve()
    bench.decoded_job(1)
    assert bench.messages(Fetch, 1)[0].request_id == rid(2)


def test_a_payload_is_kept_while_its_model_is_loaded():
    other = replace(MODEL, name="other")
    bench = Bench(warm=False)
    bench.event(ev.EngineReady((MODEL,), "cpu", None, served=("m", "other")))
    bench.beat()
    fetched(bench, 1, model="other")
    assert bench.loads == [], "the payload is fetched first"
    bench.serve()
    assert bench.loads == ["other"]
    bench.event(ev.ModelLoaded(other, ("other",)))
    assert [decode.frames for decode in bench.decoding.values()] == [(INPUT_IMAGE,)]


def test_an_exclusive_request_does_not_wait_for_payloads_of_others():
    bench = Bench()
    fetched(bench, 1)
    bench.work(2, alone=True)
    assert [job.number for job in bench.jobs.values()] == [2]
    bench.serve()
    bench.decoded_job(1)
    assert list(bench.jobs) == [2], "the others wait for the exclusive request"
    bench.start(2)
    bench.finish(2)
    assert list(bench.jobs) == [1]


def test_chunks_that_were_not_requested_have_no_effect():
    bench = Bench(brokers=2)
    fetched(bench, 1)
    for request_id, payload_id, offset, frames in [
        (rid(9), rid(9), 0, (b"x",)),
        (rid(1), rid(9), 0, (b"x",)),
        (rid(1), rid(1), 1, (b"x",)),
        (rid(1), rid(1), 0, ()),
        (rid(1), rid(1), 0, (b"x", b"y")),
        (rid(1), rid(1), 0, (bytes(len(INPUT_IMAGE) + 1000),)),
    ]:
        for broker in (0, 1):
            chunk = Chunk(request_id=request_id, payload_id=payload_id, offset=offset)
            bench.receive(chunk, *frames, broker=broker)
    bench.receive(Chunk(request_id=rid(1), payload_id=rid(1), offset=0), b"x", broker=1)
    assert bench.core.held.get(rid(1)).download.received == 0
    bench.serve()
    assert [decode.frames for decode in bench.decoding.values()] == [(INPUT_IMAGE,)]
