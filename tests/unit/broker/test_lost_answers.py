"""Answers that their worker no longer has while the client fetches them."""

from imagegen_broker.core.records import State
from tests.unit.broker.test_transfers import KIB, answer, chunk, fetch, fleet, relayed


def lost(bench):
    """Announce an answer of 100 KiB, relay the first 16 KiB of it, and lose it."""
    request_id = bench.submit(1)
    answer(bench, 1, 100 * KIB)
    fetch(bench, 1, 0, 64 * KIB)
    chunk(bench, 1, 0, 16 * KIB)
    bench.beat("w", finished=[request_id])
    bench.advance(1.0)
    assert bench.accepted() == [request_id], "the request was accepted once"
    bench.beat("w", finished=[])
    bench.advance(0.5)
    return request_id


def test_a_client_is_told_that_an_answer_is_lost():
    bench = fleet()
    request_id = lost(bench)
    assert bench.accepted() == [request_id] * 2


def test_the_bytes_asked_of_a_lost_answer_leave_the_window():
    bench = fleet(fetch_window_bytes=64 * KIB)
    lost(bench)
    assert bench.core.clients.by_id[b"c"].asked_bytes == 0
    bench.submit(2)
    answer(bench, 2, 100 * KIB)
    fetch(bench, 2, 0, 48 * KIB)
    assert relayed(bench)[-1] == (0, 48 * KIB)


def test_a_lost_answer_is_made_again_unless_it_is_acknowledged():
    bench = fleet()
    request_id = lost(bench)
    for _ in range(3):
        bench.beat("w")
        bench.advance(1.0)
    assert bench.core.table.requests[request_id].state is State.DISPATCHED
    assert bench.core.table.counters.requeued["answer_lost"] == 1
