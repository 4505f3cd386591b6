"""PROGRESS with a picture behind it is passed on unread, to those who asked and whose connection takes it."""

import pytest

from imagegen_broker.core.events import SendFailed, SendToClient
from imagegen_protocol.limits import MAX_PREVIEW_BYTES
from imagegen_protocol.messages import Accepted, ClientHeartbeat, Progress, Work
from tests.unit.broker.bench import Bench, rid


def bench_with(**fields):
    bench = Bench().past_grace()
    bench.ready("w")
    bench.submit(1, **fields)
    return bench


def told(bench, *frames):
    """What the client is sent for a PROGRESS with these frames: the frames of each."""
    bench.clear()
    bench.worker("w", Progress(request_id=rid(1), step=1, steps=2), frames)
    return [tuple(payload) for _, _, message, payload in bench.sent if isinstance(message, Progress)]


def test_the_worker_is_told_and_the_picture_passed_on():
    bench = bench_with(preview=True)
    (work,) = bench.messages(Work, "worker", "w")
    assert (work.preview, work.progress) == (True, True)
    assert told(bench, b"picture") == [(b"picture",)]
    assert told(bench) == [()]


@pytest.mark.parametrize("frames", [(b"a", b"b"), (bytes(MAX_PREVIEW_BYTES + 1),)])
def test_what_is_no_preview_is_left_out(frames):
    assert told(bench_with(preview=True), *frames) == [()]


def test_who_asked_for_progress_alone_gets_no_picture():
    assert told(bench_with(progress=True), b"picture") == [()]
    assert told(bench_with(), b"picture") == []


def test_who_asks_again_with_a_preview_gets_it():
    bench = bench_with()
    bench.submit(1, preview=True)
    assert told(bench, b"picture") == [(b"picture",)]


def test_a_client_whose_connection_takes_nothing_is_sent_no_progress():
    bench = bench_with(preview=True)
    bench.handle(SendFailed(SendToClient(b"c", Accepted(request_ids=[]))))
    assert told(bench, b"picture") == []


def test_a_worker_that_reports_without_end_fills_no_connection():
    bench = bench_with(progress=True)
    for _ in range(3):
        assert sum(len(told(bench)) for _ in range(500)) == 200
        bench.beat("w")
        bench.client("c", ClientHeartbeat())
        bench.advance(1.0)
