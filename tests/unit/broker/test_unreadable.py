"""A worker whose messages break the protocol: they are reported, hold no request for ever, and nothing loops."""

import math

import msgpack
import pytest

from imagegen_broker.core.events import Malformed, ReceivedFromWorker
from imagegen_protocol import ProtocolError
from imagegen_protocol.frames import decode_from_worker
from imagegen_protocol.limits import VERSION
from imagegen_protocol.messages import ClientHeartbeat, Error, Release
from tests.unit.broker.bench import Bench, rid


def send_plain(bench, name, **fields):
    """Have a worker send a header that may be wrong, as the broker's shell reads it."""
    header = msgpack.packb({"v": VERSION, **fields})
    try:
        message = decode_from_worker(header)
    except ProtocolError as problem:
        bench.handle(Malformed("workers", name.encode(), problem))
    else:
        bench.handle(ReceivedFromWorker(name.encode(), message, header, [b"image"]))


RESULT = {
    "type": "result",
    "worker": "w",
    "model": "m",
    "images": [{"format": "png", "width": 8, "height": 8, "seed": 1}],
}
BAD_ANSWERS = [
    RESULT | {"generation_seconds": math.inf},
    RESULT | {"parameters": {"guidance_scale": math.nan}},
    RESULT | {"images": [{"format": "png", "width": 10**9, "height": 8, "seed": 1}]},
    {"type": "error", "code": "generation_failed", "message": "m", "retry_after_seconds": math.nan},
]


@pytest.mark.parametrize("answer", BAD_ANSWERS)
def test_an_answer_that_cant_be_read_ends_its_request_and_is_released(answer):
    bench = Bench().past_grace()
    bench.ready("w")
    bench.submit(1)
    send_plain(bench, "w", request_id=rid(1), **answer)
    assert bench.errors() == [(rid(1), "generation_failed")]
    message = bench.core.table.requests[rid(1)].answer.message
    assert message.startswith("worker 'w' sent an answer that breaks the protocol: bad ")
    assert bench.ids(Release, "w") == [rid(1)]
    assert bench.messages(Error, "worker", "w")[0].code == "protocol_error"
    assert bench.core.table.counters.malformed == 1
    bench.ack(1)
    assert not bench.core.table.requests


def test_other_messages_that_cant_be_read_end_nothing():
    bench = Bench().past_grace()
    bench.ready("w")
    bench.submit(1)
    send_plain(bench, "w", type="progress", request_id=rid(1), step=-1)
    send_plain(bench, "stranger", request_id=rid(1), **BAD_ANSWERS[0])
    assert bench.errors() == []
    bench.result("w", rid(1))
    assert bench.results() == [rid(1)]


@pytest.mark.parametrize("strategy", ["round-robin", "least-wait"])
def test_a_worker_whose_heartbeats_cant_be_read_counts_as_silent_and_its_requests_move_on(strategy):
    bench = Bench(strategy=strategy).past_grace()
    bench.ready("bad")
    bench.submit(1)
    assert bench.works("bad") == [rid(1)]
    for _ in range(5):
        bench.client("c", ClientHeartbeat())
        session = bench.core.workers.by_id[b"bad"].session if b"bad" in bench.core.workers.by_id else 0
        send_plain(bench, "bad", type="heartbeat", session=session, running=[rid(1)], seconds_per_image=math.inf)
        bench.advance(1.0)
    assert not bench.core.workers.by_id
    assert bench.core.table.counters.workers_lost == 1
    bench.client("c", ClientHeartbeat())
    bench.ready("good")
    assert bench.works("good") == [rid(1)]
