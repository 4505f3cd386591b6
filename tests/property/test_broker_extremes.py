"""Well-formed messages with extreme values: no strategy raises or hangs, and the statistics are valid JSON."""

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegen_broker.scheduling.strategies import STRATEGIES
from imagegen_protocol.frames import (
    decode_broker_to_client,
    decode_broker_to_worker,
    decode_from_client,
    decode_from_worker,
    encode,
)
from imagegen_protocol.limits import (
    MAX_BODY_BYTES,
    MAX_CHUNK_BYTES,
    MAX_COUNT,
    MAX_DURATION_SECONDS,
    MAX_FETCH_BYTES,
    MAX_FRAME_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_SECONDS_PER_IMAGE,
    MAX_TIMEOUT_SECONDS,
    MIN_CHUNK_BYTES,
    MIN_SECONDS_PER_IMAGE,
)
from imagegen_protocol.messages import (
    Chunk,
    Fetch,
    Goodbye,
    ImageInfo,
    Ready,
    Result,
    Submit,
    WorkerHeartbeat,
    WorkerStats,
)
from tests.unit.broker.bench import Bench, rid

WORKERS, MODELS = ("u", "v", "w"), ("m", "n")
ids = st.lists(st.integers(0, 20).map(rid), max_size=4)
speeds = st.one_of(
    st.sampled_from([None, MIN_SECONDS_PER_IMAGE, MAX_SECONDS_PER_IMAGE, 0.1]),
    st.floats(MIN_SECONDS_PER_IMAGE, MAX_SECONDS_PER_IMAGE),
)
counts = st.sampled_from([0, 1, 7, MAX_COUNT])
durations = st.sampled_from([0.0, 5e-324, 1.0, MAX_DURATION_SECONDS])
totals = st.builds(
    WorkerStats,
    total_requests=counts,
    total_failed=counts,
    total_batches=counts,
    total_batched_requests=counts,
    total_images=counts,
    busy_seconds=durations,
)
holding = {
    "queued": ids,
    "running": ids,
    "finished": ids,
    "stats": totals,
    "seconds_per_image": speeds,
    "warm": st.lists(st.sampled_from(MODELS), max_size=3),
}
readies = st.builds(
    Ready,
    worker_id=st.sampled_from(WORKERS).map(lambda name: name.encode().ljust(16)),
    name=st.sampled_from(WORKERS),
    host=st.just("h"),
    gpu_id=st.sampled_from([0, 65_535]),
    device=st.just("d"),
    backend=st.just("b"),
    models=st.lists(st.sampled_from(MODELS), min_size=1, max_size=3),
    capacity=st.sampled_from([1, 2, 3, 1024]),
    max_batch_size=st.sampled_from([1, 1024]),
    **holding,
)
beats = st.builds(
    WorkerHeartbeat,
    session=st.one_of(st.integers(0, 3), counts),
    beat=st.one_of(st.integers(0, 9), counts),
    state=st.sampled_from(["ready", "ready", "draining"]),
    step_age_seconds=st.one_of(st.none(), durations),
    **holding,
)
submits = st.builds(
    Submit,
    request_id=st.integers(0, 20).map(rid),
    model=st.sampled_from([None, *MODELS]),
    priority=st.sampled_from([-100, 0, 0, 100]),
    timeout_seconds=st.sampled_from([None, None, 5e-324, 1.0, MAX_TIMEOUT_SECONDS]),
    progress=st.booleans(),
    images=st.sampled_from([1, 1, 16]),
    frame_bytes=st.sampled_from([[], [], [4], [1, 0, 9], [100_000], [MAX_BODY_BYTES, *[MAX_FRAME_BYTES] * 16]]),
    inline_bytes=st.sampled_from([0, 65_536]),
)
offsets = st.sampled_from([0, 1, 4, 10, 8192, MAX_PAYLOAD_BYTES])
fetches = st.builds(
    Fetch,
    request_id=st.integers(0, 20).map(rid),
    payload_id=st.integers(0, 20).map(rid),
    offset=offsets,
    length=st.sampled_from([1, 10, MAX_FETCH_BYTES]),
    chunk_bytes=st.sampled_from([MIN_CHUNK_BYTES, MAX_CHUNK_BYTES]),
    token=st.binary(max_size=16),
)
chunks = st.builds(
    Chunk,
    request_id=st.integers(0, 20).map(rid),
    payload_id=st.integers(0, 20).map(rid),
    offset=offsets,
    token=st.binary(max_size=16),
)
results = st.builds(
    Result,
    request_id=st.integers(0, 20).map(rid),
    worker=st.just("w"),
    model=st.just("m"),
    images=st.lists(st.just(ImageInfo(format="png", width=8, height=8, seed=1)), max_size=2),
    payload_id=st.one_of(st.none(), st.integers(0, 20).map(rid)),
    frame_bytes=st.sampled_from([[], [10], [10, 90_000], [MAX_FRAME_BYTES] * 17]),
)
events = st.one_of(
    st.tuples(st.just("worker"), st.sampled_from(WORKERS), st.one_of(readies, readies, beats, beats)),
    st.tuples(st.just("worker"), st.sampled_from(WORKERS), st.just(Goodbye())),
    st.tuples(st.just("client"), st.sampled_from("ab"), st.one_of(submits, submits, st.just(Goodbye()))),
    st.tuples(st.just("client"), st.sampled_from("ab"), st.one_of(fetches, chunks)),
    st.tuples(st.just("worker"), st.sampled_from(WORKERS), st.one_of(fetches, chunks, results, results)),
    st.tuples(st.just("answer"), st.sampled_from(WORKERS), st.integers(0, 20)),
    st.tuples(st.just("ack"), st.sampled_from("ab"), st.integers(0, 20)),
    st.tuples(st.just("time"), st.just(""), st.sampled_from([1e-9, 0.5, 1.0, 2.0, 30.0])),
)


class Wire(Bench):
    """A bench whose peers' messages go through the decoders, as in the broker: what they refuse, nobody sends."""

    def take(self, what, who, value):
        payload = [b"body"] if isinstance(value, Submit | Chunk | Result) else ()
        if what == "worker":
            self.worker(who, decode_from_worker(encode(value)), payload)
        elif what == "client":
            self.client(who, decode_from_client(encode(value)), payload)
        elif what == "answer":
            self.result(who, rid(value))
        elif what == "ack":
            self.ack(value, client=who)
        else:
            self.advance(value)


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@given(script=st.lists(events, min_size=5, max_size=40))
@settings(max_examples=400, deadline=None)
def test_nothing_that_peers_may_say_ends_the_broker(strategy, script):
    bench = Wire(strategy=strategy, max_unacknowledged_per_client=4).past_grace()
    for event in script:
        bench.take(*event)
    for side, _, message, _ in bench.sent:
        (decode_broker_to_client if side == "client" else decode_broker_to_worker)(encode(message))
    json.dumps(msgspec.to_builtins(bench.core.statistics(bench.now)), allow_nan=False)
