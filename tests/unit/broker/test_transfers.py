"""Payloads in chunks at the broker: input images are stored, answers are relayed, and all of it is bounded."""

import pytest

from imagegen_broker.core.events import FLUSH, ReceivedFromClient, ReceivedFromWorker, SendFailed, SendToClient
from imagegen_broker.core.records import State
from imagegen_protocol.frames import encode
from imagegen_protocol.messages import (
    Ack,
    Chunk,
    ClientHeartbeat,
    Error,
    Fetch,
    ImageInfo,
    Ready,
    Release,
    Resend,
    Result,
    Stats,
    StatsQuery,
    Submit,
    Work,
)
from tests.unit.broker.bench import Bench, rid

KIB = 1024
PAYLOAD = rid(77)
PNG = ImageInfo(format="png", width=8, height=8, seed=1)


def fleet(**settings):
    bench = Bench(**settings).past_grace()
    bench.ready("w")
    return bench


def upload(bench, number, frames, client="c", **fields):
    """Submit a request whose payload the broker fetches."""
    sizes = list(map(len, frames))
    bench.client(client, Submit(request_id=rid(number), frame_bytes=sizes, **fields))


def fetches(bench, client="c", since=0):
    return bench.messages(Fetch, "client", client)[since:]


def send_chunks(bench, number, data, client="c", most=None):
    """Answer the broker's FETCHes as a client would, until it asks for nothing more."""
    answered = sent = 0
    while answered < len(asked := fetches(bench, client)) and (most is None or sent < most):
        for fetch in asked[answered:]:
            part = data[fetch.offset : fetch.offset + fetch.length]
            bench.client(
                client, Chunk(request_id=rid(number), payload_id=rid(number), offset=fetch.offset), [part]
            )
            sent += 1
        answered = len(asked)


def answer(bench, number, size, worker="w", payload_id=PAYLOAD):
    """Have a worker answer with a payload that is fetched."""
    message = Result(
        request_id=rid(number), worker=worker, model="m", images=[PNG], payload_id=payload_id, frame_bytes=[size]
    )
    bench.worker(worker, message)


def fetch(bench, number, offset, length, client="c", token=b""):
    message = Fetch(request_id=rid(number), payload_id=PAYLOAD, offset=offset, length=length, token=token)
    bench.client(client, message)


def relayed(bench, worker="w"):
    """The ranges that the worker was asked for."""
    return [(each.offset, each.length) for each in bench.messages(Fetch, "worker", worker)]


def chunk(bench, number, offset, size, worker="w", payload_id=PAYLOAD):
    message = Chunk(request_id=rid(number), payload_id=payload_id, offset=offset)
    bench.worker(worker, message, [bytes(size)])


def received(bench, client="c"):
    """Offset and size of the chunks that the client was sent."""
    return [
        (message.offset, len(payload[0]))
        for side, peer, message, payload in bench.sent
        if (side, peer) == ("client", client.encode()) and isinstance(message, Chunk)
    ]


def last_token(bench, client="c"):
    return bench.messages(Chunk, "client", client)[-1].token


# ---- input images ----------------------------------------------------------------------------------------


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


# ---- answers ---------------------------------------------------------------------------------------------


def test_an_answer_is_relayed_in_chunks_that_the_client_asks_for():
    bench = fleet()
    bench.submit(1)
    answer(bench, 1, 100 * KIB)
    assert bench.results() == [rid(1)]
    fetch(bench, 1, 0, 32 * KIB)
    assert relayed(bench) == [(0, 32 * KIB)]
    chunk(bench, 1, 0, 16 * KIB)
    chunk(bench, 1, 16 * KIB, 16 * KIB)
    assert received(bench) == [(0, 16 * KIB), (16 * KIB, 16 * KIB)]
    bench.ack(1)
    assert bench.ids(Release, "w") == [rid(1)]


def test_chunks_that_the_client_has_not_asked_for_are_dropped():
    bench = fleet()
    bench.ready("v")
    bench.submit(1)
    worker = bench.core.table.requests[rid(1)].worker.name
    other = "v" if worker == "w" else "w"
    answer(bench, 1, 100 * KIB, worker)
    fetch(bench, 1, 0, 16 * KIB)
    chunk(bench, 1, 0, 8 * KIB, other)
    chunk(bench, 1, 8 * KIB, 8 * KIB, worker)
    chunk(bench, 1, 0, 8 * KIB, worker, payload_id=rid(78))
    chunk(bench, 2, 0, 8 * KIB, worker)
    chunk(bench, 1, 0, 17 * KIB, worker)
    assert received(bench) == []
    chunk(bench, 1, 0, 16 * KIB, worker)
    chunk(bench, 1, 16 * KIB, 1, worker)
    assert received(bench) == [(0, 16 * KIB)]


def test_a_client_that_reads_nothing_gets_no_more_than_its_window():
    bench = fleet(fetch_window_bytes=64 * KIB)
    bench.submit(1)
    answer(bench, 1, 1000 * KIB)
    fetch(bench, 1, 0, 1000 * KIB)
    assert relayed(bench) == [(0, 64 * KIB)]
    chunk(bench, 1, 0, 64 * KIB)
    fetch(bench, 1, 64 * KIB, 64 * KIB)
    fetch(bench, 1, 64 * KIB, 64 * KIB, token=b"guessed!")
    bench.client("c", Ack(request_ids=[], token=b"\0" * 8))
    assert len(relayed(bench)) == 1
    fetch(bench, 1, 64 * KIB, 64 * KIB, token=last_token(bench))
    assert relayed(bench)[1:] == [(64 * KIB, 64 * KIB)]


def test_tokens_differ_by_secret_and_confirm_all_chunks_before():
    first, second = fleet(secret=b"1"), fleet(secret=b"2")
    for bench in (first, second):
        bench.submit(1)
        answer(bench, 1, 100 * KIB)
        fetch(bench, 1, 0, 16 * KIB)
        chunk(bench, 1, 0, 8 * KIB)
        chunk(bench, 1, 8 * KIB, 8 * KIB)
    assert last_token(first) != last_token(second)
    first.client("c", ClientHeartbeat(token=last_token(first)))
    assert first.core.clients.by_id[b"c"].window.size == 0


def test_the_windows_of_many_clients_share_a_total():
    bench = fleet(fetch_window_bytes=1024 * KIB, max_transfer_bytes=1024 * KIB)
    for number in range(4):
        bench.client(f"c{number}", ClientHeartbeat())
    bench.advance(1.0)
    assert bench.core.transfers.window == 256 * KIB
    for number in range(4, 400):
        bench.client(f"c{number}", ClientHeartbeat())
    bench.advance(1.0)
    assert bench.core.transfers.window == 64 * KIB


def test_a_new_connection_continues_an_answer():
    bench = fleet()
    bench.submit(1)
    answer(bench, 1, 100 * KIB)
    fetch(bench, 1, 0, 32 * KIB)
    chunk(bench, 1, 0, 16 * KIB)
    bench.client("again", Submit(request_id=rid(1)), [b"body"])
    assert bench.ids(Resend, "w") == [rid(1)]
    answer(bench, 1, 100 * KIB)
    assert bench.results("again") == [rid(1)]
    fetch(bench, 1, 16 * KIB, 32 * KIB, client="again")
    assert relayed(bench)[-1] == (16 * KIB, 32 * KIB)
    chunk(bench, 1, 16 * KIB, 32 * KIB)
    assert received(bench, "again") == [(16 * KIB, 32 * KIB)]


def test_a_restarted_broker_relays_from_the_middle():
    bench = fleet()
    bench.beat("w", finished=[rid(1)])
    bench.submit(1)
    answer(bench, 1, 100 * KIB)
    fetch(bench, 1, 48 * KIB, 16 * KIB)
    chunk(bench, 1, 48 * KIB, 16 * KIB)
    assert received(bench) == [(48 * KIB, 16 * KIB)]


def test_the_answer_is_not_repeated_while_it_is_fetched():
    bench = fleet()
    bench.submit(1)
    answer(bench, 1, 1000 * KIB)
    for step in range(20):
        fetch(bench, 1, step * 8 * KIB, 8 * KIB)
        chunk(bench, 1, step * 8 * KIB, 8 * KIB)
        bench.beat("w", finished=[rid(1)])
        bench.advance(1.0)
    assert bench.ids(Resend, "w") == []


def test_a_worker_that_answers_no_fetch_loses_the_answer():
    bench = fleet()
    bench.submit(1)
    answer(bench, 1, 100 * KIB)
    for _ in range(7):
        fetch(bench, 1, 0, 16 * KIB)
        fetch(bench, 1, 0, 16 * KIB)  # repeated too soon to be relayed
        bench.now += bench.core.settings.interval
        bench.beat("w", finished=[rid(1)])
    assert bench.ids(Release, "w") == [rid(1)]
    assert bench.core.table.counters.requeued["answer_lost"] == 1


def test_a_worker_that_never_sends_a_finished_answer_is_asked_a_few_times():
    bench = fleet()
    bench.ready("v")
    bench.submit(1)
    worker = bench.core.table.requests[rid(1)].worker.name
    for _ in range(60):
        bench.client("c", ClientHeartbeat())
        for name in ("v", "w"):
            bench.beat(name, finished=[rid(1)] if name == worker else [])
        bench.advance(1.0)
    assert bench.core.table.counters.requeued["answer_lost"] >= 1
    for _ in range(600):
        bench.client("c", ClientHeartbeat())
        for name in ("v", "w"):
            bench.beat(name, finished=[rid(1)])
        bench.advance(1.0)
        if bench.errors():
            break
    assert bench.errors() == [(rid(1), "generation_failed")]


def test_ids_of_another_model_are_not_accepted_from_a_worker():
    bench = fleet()
    bench.ready("v", models=["n"])
    bench.beat("v", queued=[rid(1)])
    bench.submit(1, model="m")
    assert bench.core.table.requests[rid(1)].worker.name == "w"


@pytest.mark.parametrize(
    ("fields", "payload"),
    [
        ({"frame_bytes": [10, 10], "payload_id": PAYLOAD}, []),
        ({"frame_bytes": [10]}, []),
        ({"frame_bytes": [10], "payload_id": PAYLOAD}, [b"image"]),
        ({}, []),
        ({}, [b"image", b"image"]),
        ({}, [bytes(65_537)]),
        ({"frame_bytes": [0], "payload_id": PAYLOAD}, []),
    ],
)
def test_a_result_whose_payload_breaks_the_protocol_ends_its_request(fields, payload):
    bench = fleet()
    bench.submit(1)
    bench.worker("w", Result(request_id=rid(1), worker="w", model="m", images=[PNG], **fields), payload)
    assert bench.errors() == [(rid(1), "generation_failed")]
    assert bench.ids(Release, "w") == [rid(1)]


def test_a_client_whose_connection_accepts_nothing_gets_nothing_dispatched():
    bench = Bench().past_grace()
    bench.ready("w")
    bench.core.handle(ReceivedFromClient(b"gone", Submit(request_id=rid(1)), [b"body"]), bench.now)
    actions = bench.core.handle(FLUSH, bench.now)
    assert not any(isinstance(action.message, Work) for action in actions if hasattr(action, "message"))
    for action in actions:
        if isinstance(action, SendToClient):
            bench.core.handle(SendFailed(action), bench.now)
    bench.settle()
    assert bench.works("w") == []
    bench.client("gone", ClientHeartbeat())
    assert bench.works("w") == [rid(1)]


# ---- statistics ------------------------------------------------------------------------------------------


def test_long_statistics_are_fetched_and_computed_twice_a_second_at_most():
    bench = Bench().past_grace()
    for number in range(100):
        bench.worker(f"w{number}", ready_message(number))
    for query in (1, 2):
        bench.client("c", StatsQuery(request_id=rid(query)))
    first, second = bench.messages(Stats, "client", "c")
    assert (first.request_id, second.request_id) == (rid(1), rid(2))
    assert first.payload_id == second.payload_id
    (size,) = first.frame_bytes
    message = Fetch(request_id=rid(1), payload_id=first.payload_id, offset=0, length=size)
    bench.client("c", message)
    assert sum(part for _, part in received(bench)) == size
    bench.advance(0.6)
    bench.client("c", StatsQuery(request_id=rid(3)))
    assert bench.messages(Stats, "client", "c")[2].payload_id != first.payload_id


def test_a_client_beyond_the_maximum_gets_no_statistics():
    bench = Bench(max_clients=1).past_grace()
    bench.client("c", ClientHeartbeat())
    bench.client("d", StatsQuery(request_id=rid(1)))
    assert bench.messages(Stats, "client", "d") == []
    assert [error.code for error in bench.messages(Error, "client", "d")] == ["overloaded"]


def test_a_client_sets_its_own_maximum_of_unacknowledged_answers():
    bench = fleet()
    bench.client("c", ClientHeartbeat(receive_maximum=1))
    bench.submit(1)
    bench.submit(2)
    assert bench.works("w") == [rid(1)]
    bench.result("w", rid(1))
    assert bench.works("w") == [rid(1)]
    bench.ack(1)
    assert bench.works("w") == [rid(1), rid(2)]


def ready_message(number):
    return Ready(
        worker_id=rid(number),
        name=f"w{number}",
        host="a-host-with-a-long-name",
        gpu_id=0,
        device="a device with a long name",
        backend="test",
        models=["m"],
        capacity=4,
        max_batch_size=4,
    )


def test_the_chunks_of_a_worker_follow_the_speed_of_its_link():
    bench = fleet()
    bench.submit(1)
    answer(bench, 1, 1000 * KIB)

    def asked_chunks():
        return bench.messages(Fetch, "worker", "w")[-1].chunk_bytes

    offset = 0
    for expected in (8, 16, 32, 64, 128, 256, 256):
        fetch(bench, 1, offset, expected * KIB)
        assert asked_chunks() == expected * KIB
        chunk(bench, 1, offset, expected * KIB)
        offset += expected * KIB
    fetch(bench, 1, offset, 8 * KIB)
    bench.client("c", ClientHeartbeat())
    bench.advance(1.1)
    chunk(bench, 1, offset, 8 * KIB)
    fetch(bench, 1, offset + 8 * KIB, 8 * KIB)
    assert asked_chunks() == 128 * KIB


def test_a_client_can_not_ask_a_worker_for_single_bytes():
    bench = fleet()
    bench.submit(1)
    answer(bench, 1, size=20 * KIB + 5)
    for offset in range(3):
        fetch(bench, 1, offset, 1)
    fetch(bench, 1, 0, 4 * KIB - 1)
    assert relayed(bench) == []
    fetch(bench, 1, 0, 20 * KIB)
    fetch(bench, 1, 20 * KIB, 4 * KIB)
    assert relayed(bench) == [(0, 20 * KIB), (20 * KIB, 5)], "the end of a payload may be short"


def test_a_worker_that_sends_single_bytes_to_its_accomplice_fills_no_memory():
    bench = fleet()
    bench.submit(1)
    answer(bench, 1, size=60 * KIB)
    fetch(bench, 1, 0, 60 * KIB)
    for offset in range(5000):
        message = Chunk(request_id=rid(1), payload_id=PAYLOAD, offset=offset)
        bench.core.handle(ReceivedFromWorker(b"w", message, encode(message), [b"x"]), bench.now)
    assert len(bench.core.clients.by_id[b"c"].window._sizes) == 4096
