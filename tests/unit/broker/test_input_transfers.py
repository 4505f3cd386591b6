"""Input images that the broker fetches in chunks and stores, bounded in bytes."""

import pytest

from imagegen_broker.core.events import ReceivedFromWorker
from imagegen_broker.core.records import State
from imagegen_protocol.frames import encode
from imagegen_protocol.messages import (
    Chunk,
    ClientHeartbeat,
    Error,
    Fetch,
    Submit,
    Work,
)
from tests.unit.broker.bench import rid
from tests.unit.broker.transfers import (
    KIB,
    fetches,
    fleet,
    send_chunks,
    upload,
)


def test_a_request_is_dispatched_when_its_payload_is_complete():
    bench = fleet()
    frames = [b"body", bytes(range(256)) * 400]
    upload(bench, 1, frames)
    request = bench.core.table.requests[rid(1)]
    assert request.state is State.RECEIVING
    assert bench.works("w") == []
    assert bench.core.statistics(bench.now).requests.receiving == 1
    send_chunks(bench, 1, b"".join(frames))
    assert bench.works("w") == [rid(1)]
    assert [bytes(frame) for frame in request.payload] == frames


def test_a_worker_fetches_a_long_payload_and_gets_a_short_one_inline():
    bench = fleet()
    frames = [b"body", bytes(40 * KIB)]
    upload(bench, 1, frames)
    send_chunks(bench, 1, b"".join(frames))
    bench.submit(2)
    long, short = [(m, p) for _, _, m, p in bench.sent if isinstance(m, Work)]
    assert (long[0].frame_bytes, long[1]) == ([4, 40 * KIB], ())
    assert (short[0].frame_bytes, short[1]) == ([], [b"body"])
    bench.worker("w", Fetch(request_id=rid(1), payload_id=rid(1), offset=2, length=9 * KIB, chunk_bytes=8 * KIB))
    parts = [(m.offset, bytes(p[0])) for side, _, m, p in bench.sent if side == "worker" and isinstance(m, Chunk)]
    data = b"".join(frames)
    assert parts == [(2, data[2 : 2 + 8 * KIB]), (2 + 8 * KIB, data[2 + 8 * KIB : 2 + 9 * KIB])]


def test_the_bytes_on_the_way_to_a_worker_are_bounded_until_it_confirms():
    bench = fleet(fetch_window_bytes=64 * KIB)
    frames = [b"body", bytes(200 * KIB)]
    upload(bench, 1, frames)
    send_chunks(bench, 1, b"".join(frames))

    def ask(offset, token=b""):
        bench.worker(
            "w", Fetch(request_id=rid(1), payload_id=rid(1), offset=offset, length=200 * KIB, token=token)
        )
        return [m for side, _, m, _ in bench.sent if side == "worker" and isinstance(m, Chunk)]

    assert bench.core.workers.by_id[b"w"].window.size == 0
    ask(0)
    assert bench.core.workers.by_id[b"w"].window.size == 64 * KIB
    first = ask(64 * KIB)
    assert bench.core.workers.by_id[b"w"].window.size == 64 * KIB
    assert len(ask(64 * KIB, first[-1].token)) > len(first)
    assert bench.core.workers.by_id[b"w"].window.size == 64 * KIB


def test_a_worker_that_asks_for_single_bytes_fills_no_memory():
    bench = fleet()
    frames = [b"body", bytes(60 * KIB)]
    upload(bench, 1, frames)
    send_chunks(bench, 1, b"".join(frames))
    for offset in range(5000):
        message = Fetch(request_id=rid(1), payload_id=rid(1), offset=offset, length=1)
        bench.core.handle(ReceivedFromWorker(b"w", message, encode(message), ()), bench.now)
    assert len(bench.core.workers.by_id[b"w"].window._sizes) == 4096


def test_a_payload_goes_on_where_it_stopped_when_its_client_has_a_new_connection():
    bench = fleet()
    frames = [b"body", bytes(60 * KIB)]
    upload(bench, 1, frames)
    send_chunks(bench, 1, b"".join(frames), most=2)
    arrived = bench.core.table.requests[rid(1)].download.received
    assert arrived > 0
    upload(bench, 1, frames, client="again")
    assert fetches(bench, "again")[0].offset == arrived
    send_chunks(bench, 1, b"".join(frames), client="again")
    assert bench.works("w") == [rid(1)]


def test_a_client_that_sends_nothing_is_asked_a_few_times_and_refused():
    bench = fleet()
    upload(bench, 1, [b"body", bytes(60 * KIB)])
    for _ in range(400):
        bench.client("c", ClientHeartbeat())
        bench.advance(1.0)
        if bench.errors():
            break
    assert bench.errors() == [(rid(1), "protocol_error")]
    assert "asked 6 times" in bench.core.table.requests[rid(1)].answer.message
    bench.ack(1)
    assert bench.core.table.bytes == 0


def test_cancel_deadline_and_departure_end_a_request_that_is_received():
    bench = fleet()
    frames = [b"body", bytes(60 * KIB)]
    upload(bench, 1, frames)
    upload(bench, 2, frames, timeout_seconds=5.0)
    upload(bench, 3, frames)
    bench.cancel(1)
    for _ in range(6):
        bench.client("c", ClientHeartbeat())
        bench.advance(1.0)
    assert set(bench.errors()) == {(rid(1), "cancelled"), (rid(2), "deadline_exceeded")}
    bench.advance(10.0)
    assert bench.core.table.receiving == 0
    assert bench.core.table.bytes == 0


@pytest.mark.parametrize(
    ("sizes", "payload", "text"),
    [
        ([], [], "needs a body"),
        ([4], [b"body"], "either fetched or inline"),
        ([300_000], [], "the body is 300000 bytes long"),
        ([4, *[64 * KIB * KIB] * 17], [], "the payload is 1140850692 bytes long"),
        ([0], [], "the payload is 0 bytes long"),
        ([], [b"body", bytes(65_536)], "the inline payload is 65540 bytes long"),
    ],
)
def test_a_wrong_payload_is_refused(sizes, payload, text):
    bench = fleet(max_bytes=2**40, max_bytes_per_client=2**40)
    bench.client("c", Submit(request_id=rid(1), frame_bytes=sizes), payload)
    assert bench.errors() == [(rid(1), "invalid_request")]
    assert text in bench.messages(Error, "client", "c")[0].message


def test_the_declared_size_counts_before_the_bytes_arrive():
    bench = fleet(max_bytes_per_client=100 * KIB)
    upload(bench, 1, [b"body", bytes(60 * KIB)])
    upload(bench, 2, [b"body", bytes(60 * KIB)])
    assert bench.errors() == [(rid(2), "overloaded")]


def test_a_worker_that_already_holds_the_request_makes_its_payload_unnecessary():
    bench = fleet()
    bench.beat("w", running=[rid(1)])
    frames = [b"body", bytes(60 * KIB)]
    upload(bench, 1, frames)
    assert bench.core.table.requests[rid(1)].state is State.DISPATCHED
    assert fetches(bench) == []
    # It dies, so the payload is needed after all.
    bench.core.workers.remove_dead_worker(bench.core.workers.by_id[b"w"], bench.now)
    bench.settle()
    assert bench.core.table.requests[rid(1)].state is State.RECEIVING
    bench.ready("v")
    send_chunks(bench, 1, b"".join(frames))
    assert bench.works("v") == [rid(1)]
