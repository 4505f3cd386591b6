"""Answers that the broker relays in chunks: windows, tokens, new connections, lost answers."""

import pytest

from imagegen_broker.core.events import FLUSH, ReceivedFromClient, ReceivedFromWorker, SendFailed, SendToClient
from imagegen_protocol.frames import encode
from imagegen_protocol.messages import (
    Ack,
    Chunk,
    ClientHeartbeat,
    Fetch,
    Release,
    Resend,
    Result,
    Submit,
    Work,
)
from tests.unit.broker.bench import Bench, rid
from tests.unit.broker.transfers import (
    KIB,
    PAYLOAD,
    PNG,
    answer,
    chunk,
    fetch,
    fleet,
    last_token,
    received,
    relayed,
)


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
