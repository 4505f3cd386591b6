"""Payloads in chunks between a worker process and a broker made of nothing but `zmq` and `msgpack`."""

import io
import signal
import sys

import msgpack
import psutil
from PIL import Image

from tests.integration.test_worker import QUICK, bind, broker, ids, start
from tests.tcp_proxy import TcpProxy

__all__ = ["bind", "broker", "start"]


NOISE = (sys.executable, "-m", "tests.e2e.noise_worker")


def noise(side):
    """Return a PNG file that hardly shrinks."""
    out = io.BytesIO()
    Image.effect_noise((side, side), 100).save(out, "PNG")
    return out.getvalue()


class Payload:
    """The payload of a WORK that the worker fetches."""

    def __init__(self, broker, request_id, *images, **fields):
        body = msgpack.packb({"prompt": "p", "seed": 7, "inputs": ["image"][: len(images)]})
        self.broker, self.request_id = broker, request_id
        self.data = b"".join((body, *images))
        self.sizes = [len(body), *map(len, images)]
        self.token = b""
        self.asked = []
        """The offset and length of each FETCH that was answered."""
        broker.send("work", request_id=request_id, frame_bytes=self.sizes, **fields)

    def serve(self, until):
        """Answer FETCHes until another message arrives of which this holds; return the message."""
        while not until(message := self.broker.receive("fetch", "heartbeat", "result", "error")):
            if message["type"] == "fetch" and message["request_id"] == self.request_id:
                self.answer(message)
        return message

    def answer(self, fetch):
        offset, length = fetch["offset"], fetch["length"]
        self.asked.append((offset, length))
        end = min(offset + length, len(self.data))
        for first in range(offset, end, fetch["chunk_bytes"]):
            data = self.data[first : min(first + fetch["chunk_bytes"], end)]
            fields = {"request_id": self.request_id, "payload_id": self.request_id, "offset": first}
            self.token = b"%016d" % first
            self.broker.send("chunk", data, **fields, token=self.token)


def download(broker, result, chunk_bytes=4096):
    """Fetch the images of a RESULT; return them."""
    sizes = result["frame_bytes"]
    about = {"request_id": result["request_id"], "payload_id": result["payload_id"]}
    broker.send("fetch", **about, offset=0, length=sum(sizes), chunk_bytes=chunk_bytes)
    data = b""
    while len(data) < sum(sizes):
        chunk = broker.receive("chunk")
        assert (chunk["payload_id"], chunk["offset"]) == (result["payload_id"], len(data))
        assert len(chunk["frames"][0]) <= chunk_bytes
        data += chunk["frames"][0]
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    return [data[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def test_an_input_image_and_the_answer_are_fetched(broker, start):
    start(*QUICK)
    broker.register()
    (one,) = ids(1)
    payload = Payload(broker, one, noise(1000), inline_bytes=0)
    result = payload.serve(lambda message: message["type"] == "result")
    assert sum(length for _, length in payload.asked) == len(payload.data), "each byte was asked for once"
    assert max(length for _, length in payload.asked) > 16_384, "the window grew"
    assert (result["parameters"]["task"], result["frames"]) == ("image-to-image", [])
    (image,) = download(broker, result)
    assert Image.open(io.BytesIO(image)).size == (512, 512), "four times the default area"
    beat = broker.heartbeat(lambda beat: beat["finished"] == [one])
    assert beat["token"] == payload.token, "the last chunk is confirmed"


def test_a_large_answer_is_announced_and_a_small_one_is_inline(broker, start):
    start(*QUICK)
    broker.register()
    many, few = ids(2)
    size = {"width": 1024, "height": 1024}
    broker.work(many, {**size, "num_images": 16})
    result = broker.receive("result")
    assert (len(result["frame_bytes"]), result["frames"]) == (16, [])
    images = download(broker, result)
    assert [Image.open(io.BytesIO(image)).size for image in images] == [(1024, 1024)] * 16
    broker.work(few, {"width": 64, "height": 64})
    result = broker.receive("result")
    assert (result["payload_id"], result["frame_bytes"], len(result["frames"])) == (None, [], 1)


def test_a_worker_that_leaves_returns_what_has_not_arrived(broker, start):
    worker = start(*QUICK)
    broker.register()
    (one,) = ids(1)
    Payload(broker, one, noise(500))
    broker.receive("fetch")
    broker.heartbeat(lambda beat: beat["queued"] == [one])
    worker.signal(signal.SIGTERM)
    error = broker.receive("error", "result")
    assert (error["request_id"], error["code"]) == (one, "returned")
    broker.receive("goodbye")
    assert worker.end() == 0


def test_a_request_that_arrives_slowly_does_not_delay_others(broker, start):
    start(*QUICK, "--max-batch-size", "1")
    broker.register()
    slow, quick = ids(2)
    payload = Payload(broker, slow, noise(500))
    broker.work(quick)
    fetches = []
    while (message := broker.receive("fetch", "result"))["type"] == "fetch":
        fetches.append(message)
    assert message["request_id"] == quick
    for fetch in fetches:
        payload.answer(fetch)
    assert payload.serve(lambda message: message["type"] == "result")["request_id"] == slow


def test_a_frame_longer_than_a_chunk_ends_the_connection(broker, start):
    start(*QUICK)
    broker.register()
    first = broker.peer
    broker.send("chunk", bytes(262_145), request_id=bytes(16), payload_id=bytes(16), offset=0)
    while broker.peer == first:
        broker.receive("ready", "heartbeat")


def test_a_flood_of_fetches_costs_a_bounded_number_of_bytes(bind, broker, start):
    """One broker asks for gigabytes and reads nothing; the worker keeps serving the other."""
    other = bind()
    worker = start(*QUICK, "--broker", other.endpoint, command=NOISE)
    for each, epoch in ((broker, b"e" * 16), (other, b"f" * 16)):
        each.register(epoch=epoch)
    (one,) = ids(1)
    broker.work(one, {"num_images": 8, "width": 1024, "height": 1024})
    result = broker.receive("result")
    process = psutil.Process(worker.process.pid)
    before = process.memory_info().rss
    about = {"request_id": one, "payload_id": result["payload_id"], "offset": 0, "length": 2**24}
    for number in range(2000):
        broker.send("fetch", **about, chunk_bytes=4096 if number % 2 else 262_144)
    for _ in range(3):
        (quick,) = ids(1)
        other.beat(epoch=b"f" * 16)
        other.work(quick, {"width": 64, "height": 64})
        while other.receive("result")["request_id"] != quick:
            pass
    assert process.memory_info().rss - before < 100_000_000


def register_again(broker, lost):
    """Wait for the worker's new connection, and register it."""
    while broker.peer == lost:
        broker.receive("ready", "heartbeat")
    broker.beat(session=0)
    broker.register(session=2)


def test_an_input_image_continues_after_a_reset_in_the_middle_of_a_chunk(broker, start):
    with TcpProxy(broker.endpoint) as proxy:
        start(*QUICK, endpoint=proxy.endpoint)
        broker.register()
        (one,) = ids(1)
        payload = Payload(broker, one, noise(1000))
        proxy.reset_after(down=100_000)
        lost = broker.peer
        payload.serve(lambda message: broker.peer != lost)
        register_again(broker, lost)
        before = len(payload.asked)
        assert payload.serve(lambda message: message["type"] == "result")["request_id"] == one
    arrived = payload.asked[before][0]
    assert 0 < arrived <= 100_000
    assert sum(length for _, length in payload.asked[before:]) == len(payload.data) - arrived


def test_an_answer_can_be_fetched_after_a_reset_in_the_middle_of_a_chunk(broker, start):
    with TcpProxy(broker.endpoint) as proxy:
        start(*QUICK, endpoint=proxy.endpoint)
        broker.register()
        (one,) = ids(1)
        broker.work(one, {"width": 512, "height": 512}, inline_bytes=0)
        result = broker.receive("result")
        lost = broker.peer
        proxy.reset_after(up=2000)
        about = {"request_id": one, "payload_id": result["payload_id"], "length": 2**24}
        broker.send("fetch", **about, offset=0)
        while broker.peer == lost:
            assert broker.receive("heartbeat", "ready", "chunk")["type"] != "chunk"
        register_again(broker, lost)
        assert len(download(broker, result)) == 1
