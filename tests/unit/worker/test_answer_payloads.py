"""Payloads of answers, which brokers fetch in chunks."""

import pytest

from imagegen_protocol.limits import MAX_FETCH_BYTES, MIN_CHUNK_BYTES
from imagegen_protocol.messages import Chunk, Error, Fetch, Resend, Result
from imagegen_worker.core import events as ev
from imagegen_worker.core.held_requests import MAX_AGE_FACTOR
from tests.unit.worker.bench import Bench, rid

IMAGE = bytes(range(256)) * 400
"""An image of 102,400 bytes."""


def fetch(number, payload_id, offset=0, length=MAX_FETCH_BYTES, **fields):
    return Fetch(request_id=rid(number), payload_id=payload_id, offset=offset, length=length, **fields)


def answered(bench, number, *images, inline_bytes=1000, **fields):
    """Run a request that is answered with these images; return the answer."""
    bench.work(number, inline_bytes=inline_bytes, **fields)
    bench.start(number)
    bench.finish(number, *images)
    return bench.answers(number, fields.get("broker", 0))[-1]


def received(bench, broker=0):
    """Return the concatenated chunks that were sent to a broker; check their offsets."""
    data = b""
    for to, message, frames in bench.sent:
        if to == broker and isinstance(message, Chunk):
            assert message.offset == len(data)
            data += frames[0]
    return data


def test_small_images_are_sent_with_the_answer():
    bench = Bench()
    result = answered(bench, 1, bytes(600), bytes(400))
    assert (result.payload_id, result.frame_bytes) == (None, [])
    assert bench.sent[-1][2] == (bytes(600), bytes(400))


def test_large_images_are_announced_and_fetched():
    bench = Bench()
    result = answered(bench, 1, b"a" * 600, b"b" * 401)
    assert bench.sent[-1][2] == ()
    assert result.frame_bytes == [600, 401]
    bench.sent.clear()
    bench.receive(fetch(1, result.payload_id, 100, 700))
    assert [message.offset for _, message, _ in bench.sent] == [100]
    assert bench.sent[0][2] == (b"a" * 500 + b"b" * 200,)
    assert all(chunk.payload_id == result.payload_id for chunk in bench.messages(Chunk))


def test_an_answer_is_fetched_by_any_broker():
    bench = Bench(brokers=2)
    result = answered(bench, 1, IMAGE)
    bench.receive(fetch(1, result.payload_id, chunk_bytes=MIN_CHUNK_BYTES), broker=1)
    assert received(bench, 1) == IMAGE
    assert received(bench, 0) == b""


def test_a_second_work_sets_what_is_sent_inline():
    bench = Bench()
    first = answered(bench, 1, IMAGE[:5000])
    bench.work(1, inline_bytes=5000, attempt=2)
    inline = bench.sent[-1]
    assert (inline[1].payload_id, inline[1].frame_bytes, inline[1].attempt) == (None, [], 2)
    assert inline[2] == (IMAGE[:5000],)
    bench.work(1, inline_bytes=0, attempt=3)
    again = bench.answers(1)[-1]
    assert (again.payload_id, again.frame_bytes, again.attempt) == (first.payload_id, [5000], 3)


def test_unknown_payloads_are_not_sent():
    bench = Bench()
    result = answered(bench, 1, IMAGE)
    bench.work(2)
    bench.work(3)
    bench.fail(3)
    bench.sent.clear()
    for number, payload_id in [
        (1, rid(1)),
        (2, result.payload_id),
        (3, result.payload_id),
        (3, bytes(16)),
        (4, rid(4)),
    ]:
        bench.receive(fetch(number, payload_id))
    bench.receive(fetch(1, result.payload_id, len(IMAGE)))
    bench.release(1)
    bench.receive(fetch(1, result.payload_id))
    assert bench.sent == []


def test_another_answer_to_the_same_request_has_another_payload_id():
    bench = Bench()
    first = answered(bench, 1, IMAGE)
    other = answered(bench, 2, IMAGE)
    bench.release(1)
    second = answered(bench, 1, IMAGE)
    assert len({first.payload_id, other.payload_id, second.payload_id}) == 3


def test_chunks_are_views_and_their_number_is_bounded():
    bench = Bench(bytes=100_000_000)
    image = bytes(MAX_FETCH_BYTES + 1000)
    result = answered(bench, 1, image)
    bench.sent.clear()
    bench.receive(fetch(1, result.payload_id, chunk_bytes=MIN_CHUNK_BYTES))
    assert len(bench.sent) == MAX_FETCH_BYTES // MIN_CHUNK_BYTES
    assert all(frames[0].obj is image for _, _, frames in bench.sent)


def test_an_answer_that_is_fetched_is_not_the_first_to_be_dropped():
    bench = Bench(count=2, seconds=100.0)
    first = answered(bench, 1, IMAGE)
    answered(bench, 2, IMAGE)
    bench.receive(fetch(1, first.payload_id, 0, 10))
    answered(bench, 3, IMAGE)
    assert bench.states()[2] == [rid(1), rid(3)]


def test_an_answer_that_is_fetched_does_not_expire():
    bench = Bench(seconds=10.0)
    result = answered(bench, 1, IMAGE)
    for offset in range(5):
        bench.beats(9.0)
        bench.receive(fetch(1, result.payload_id, offset, 10))
    assert bench.states()[2] == [rid(1)]
    bench.beats(10.0)
    assert bench.states()[2] == []


def test_an_answer_of_which_the_same_bytes_are_fetched_again_expires():
    bench = Bench(seconds=10.0)
    result = answered(bench, 1, IMAGE)
    bench.beats(4.0)
    bench.receive(fetch(1, result.payload_id, 0, 10))
    for _ in range(3):
        bench.beats(3.0)
        assert bench.states()[2] == [rid(1)]
        bench.receive(fetch(1, result.payload_id, 5, 5))
    bench.beats(1.0)
    assert bench.states()[2] == []


def test_an_answer_of_which_the_same_bytes_are_fetched_again_is_the_first_to_be_dropped():
    bench = Bench(count=2, seconds=100.0)
    first = answered(bench, 1, IMAGE)
    bench.receive(fetch(1, first.payload_id, 0, 10))
    answered(bench, 2, IMAGE)
    bench.receive(fetch(1, first.payload_id, 0, 10))
    answered(bench, 3, IMAGE)
    assert bench.states()[2] == [rid(2), rid(3)]


@pytest.mark.parametrize("way", ["fetch", "resend"])
def test_an_answer_that_is_requested_without_end_expires(way):
    bench = Bench(seconds=10.0)
    result = answered(bench, 1, IMAGE)
    for offset in range(int(MAX_AGE_FACTOR * 10.0 / 4.0) - 1):
        bench.beats(4.0)
        assert bench.states()[2] == [rid(1)]
        request = fetch(1, result.payload_id, offset, 10) if way == "fetch" else Resend(request_ids=[rid(1)])
        bench.receive(request)
    answered(bench, 2, IMAGE)
    bench.beats(4.0)
    assert bench.states()[2] == [rid(2)], "the maximum age applies to each answer"


def test_a_draining_worker_stays_while_its_answer_is_fetched():
    bench = Bench(drain=5.0)
    result = answered(bench, 1, IMAGE)
    bench.event(ev.DrainRequested("SIGTERM"))
    for offset in range(5):
        bench.beats(4.0)
        bench.receive(fetch(1, result.payload_id, offset, 10))
    assert bench.status is None
    bench.beats(4.0)
    bench.receive(fetch(1, result.payload_id, 0, 10))
    bench.beats(1.0)
    assert bench.status == 0


def test_answers_of_errors_have_no_payload():
    bench = Bench()
    bench.work(1, inline_bytes=0)
    bench.fail(1)
    assert bench.messages(Result) == []
    assert len(bench.messages(Error)) == 1
