"""Helpers for tests of payloads that are transferred in chunks."""

from imagegen_protocol.messages import (
    Chunk,
    Fetch,
    ImageInfo,
    Result,
    Submit,
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
