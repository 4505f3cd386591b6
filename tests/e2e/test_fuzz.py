"""Malformed messages at both ports of a broker: its memory stays flat, and valid requests are answered."""

import random
import socket
from urllib.parse import urlsplit

import msgpack
import psutil
import pytest
import zmq
from msgspec.structs import astuple

from imagegen_protocol.messages import ClientMessage, WorkerMessage
from tests.e2e.conftest import start_simulated

MESSAGES = 10_000
"""Malformed messages at each port."""
BETWEEN = 500
"""Number of malformed messages between two valid requests."""
GROWTH_BYTES = 30 * 1024 * 1024
TYPES = {
    "client": [kind.__struct_config__.tag for kind in ClientMessage.__args__],
    "worker": [kind.__struct_config__.tag for kind in WorkerMessage.__args__],
}
FIELDS = sorted(
    {name for kind in (*ClientMessage.__args__, *WorkerMessage.__args__) for name in kind.__struct_fields__}
)


class Fuzzer:
    """Generates malformed messages of many kinds from a seed."""

    def __init__(self, seed, side):
        self.random = random.Random(seed)
        self.side = side
        self.ids = [self.random.randbytes(16) for _ in range(8)]

    def value(self, depth=0):
        pick = self.random.randrange(12)
        if pick < 2 and depth < 4:
            return [self.value(depth + 1) for _ in range(self.random.randrange(4))]
        if pick == 2 and depth < 4:
            return {self.random.choice(FIELDS): self.value(depth + 1) for _ in range(3)}
        return self.random.choice(
            [
                None,
                True,
                0,
                -1,
                2**63,
                1e308,
                float("nan"),
                float("inf"),
                "",
                "x" * self.random.randrange(300),
                "\x00\ud7ff",
                b"",
                self.random.choice(self.ids),
                self.random.randbytes(self.random.randrange(40)),
            ]
        )

    def header(self):
        """Return a map with a valid type and version, and random fields."""
        fields = {"v": 2, "type": self.random.choice(TYPES[self.side])}
        for name in self.random.sample(FIELDS, self.random.randrange(len(FIELDS))):
            fields[name] = self.value()
        if self.random.random() < 0.7:
            fields["request_id"] = self.random.choice(self.ids)
        if self.random.random() < 0.5:
            fields["request_ids"] = self.random.sample(self.ids, 3)
        for held in ("queued", "running", "finished"):
            if self.random.random() < 0.5:
                fields[held] = self.random.sample(self.ids, self.random.randrange(4))
        return msgpack.packb(fields)

    def message(self):
        pick = self.random.randrange(6)
        if pick == 0:
            return [self.random.randbytes(self.random.randrange(200)) for _ in range(self.random.randrange(1, 5))]
        if pick == 1:  # announces far more items than follow
            return [self.random.choice([b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\x91" * 60_000])]
        header = bytearray(self.header())
        if pick == 2:
            del header[self.random.randrange(len(header)) :]
        if pick == 3:
            header[self.random.randrange(len(header))] ^= 1 << self.random.randrange(8)
        return [bytes(header), *(self.random.randbytes(30) for _ in range(self.random.randrange(3)))]


def is_empty(stats):
    """Return whether a broker holds only its two workers and the querying client."""
    idle = all(gpu["current_queue_depth"] == gpu["unacknowledged"] == 0 for gpu in stats["per_gpu_stats"])
    left = (stats["clients"], stats["num_gpus"], *astuple(stats.requests), stats["held_bytes"])
    return idle and left == (1, 2, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("side", ["client", "worker"])
def test_bad_messages_between_good_requests(fleet, client, side, tmp_path, caplog):
    start_simulated(fleet, client, "a", "b")
    broker = psutil.Process(fleet.processes["broker"].pid)
    place = fleet.brokers["broker"]
    fuzzer = Fuzzer(7, side)
    context = zmq.Context()
    before, threads = None, broker.num_threads()
    for number in range(MESSAGES):
        if number % BETWEEN == 0:
            dealer = context.socket(zmq.DEALER)
            dealer.linger = 1000
            dealer.connect(place.frontend if side == "client" else place.backend)
        dealer.send_multipart(fuzzer.message())
        if number % BETWEEN == BETWEEN - 1:
            assert client.generate(f"good {number}", seed=number, timeout_seconds=60).seed == number
            dealer.close()
            # The first thousand messages fill caches and tables.
            if before is None and number > 2 * BETWEEN:
                before = broker.memory_info().rss
    context.term()
    assert broker.memory_info().rss - before < GROWTH_BYTES
    assert client.stats()["totals"]["malformed"] > MESSAGES / 10
    fleet.wait_until(lambda: is_empty(client.stats()), "an empty broker")
    assert broker.num_threads() == threads
    # Each undecodable message was answered with an error and not forwarded.
    for name in ("a", "b"):
        assert "invalid message received" not in (tmp_path / "logs" / f"{name}.log").read_text()
    assert not caplog.records


def test_bytes_that_are_not_zeromq(fleet, client):
    start_simulated(fleet, client, "a")
    rng = random.Random(3)
    broker = psutil.Process(fleet.processes["broker"].pid)
    place = fleet.brokers["broker"]
    files = broker.num_fds()
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
    for number in range(400):
        where = urlsplit(rng.choice([place.frontend, place.backend]))
        with socket.create_connection((where.hostname, where.port), timeout=10) as raw:
            # Some connections stop within the greeting; others announce a frame of 2^60 bytes after it.
            huge = greeting + b"\x02" + b"\x0f" * 40
            raw.sendall(rng.choice([b"", rng.randbytes(80), greeting[: rng.randrange(64)], huge]))
        if number % 100 == 99:
            assert client.generate(f"good {number}", seed=number, timeout_seconds=60).seed == number
    fleet.wait_until(lambda: broker.num_fds() <= files + 5, "closed connections")
