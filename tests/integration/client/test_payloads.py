"""Large answers and requests over real sockets: chunks, limits, interrupted transfers."""

import random
import time

import pytest

from imagegen_client import CancelledError, Client, DeadlineExceededError
from imagegen_client.transport import MAX_UNSENT_CHUNK_BYTES
from imagegen_protocol.limits import MAX_CHUNK_BYTES
from tests.integration.client.peers import PATIENCE, PNG
from tests.tcp_proxy import TcpProxy

LARGE = random.Random(1).randbytes(3_000_000)
PAYLOAD_ID = b"p" * 16
IMAGE_INFO = {"format": "png", "width": 4, "height": 2, "seed": 4}


def wait_until(holds):
    """Wait until a condition of another thread holds."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def announce(broker, request_id, size):
    about = {"request_id": request_id, "worker": "w", "model": "m", "images": [IMAGE_INFO]}
    broker.say(type="result", payload_id=PAYLOAD_ID, frame_bytes=[size], **about)


def accept(broker, interval=0.1):
    """Take the first request of a client; return its header."""
    broker.receive("heartbeat")
    broker.heartbeat(interval)
    return broker.receive("submit")[0]


# ---- with a real broker ------------------------------------------------------------------------------------


def test_large_answers_arrive_beside_small_ones(client, worker):
    worker.image = LARGE
    large = [client.submit("x", num_images=2) for _ in range(3)]
    assert [bytes(image) for job in large for image in job.result(PATIENCE).encoded] == [LARGE] * 6
    worker.image = PNG
    assert client.generate("y").encoded == [PNG]
    worker.wait_for_idleness()


def test_a_large_request_and_a_large_answer(client, worker):
    worker.image = LARGE
    data = PNG + LARGE
    assert client.generate("x", image=data).encoded == [LARGE]
    assert worker.images == [[data]]


def test_a_transfer_continues_after_a_reset_of_the_connection(broker, worker):
    worker.image, worker.readable = LARGE, 1_000_000
    with TcpProxy(broker.frontend_endpoint) as proxy, Client(proxy.endpoint) as client:
        job = client.submit("x")
        wait_until(lambda: worker.sent_offsets and worker.sent_offsets[-1] >= 700_000)
        before = len(worker.sent_offsets)
        proxy.reset_all()
        worker.readable = None
        assert job.result(PATIENCE).encoded == [LARGE]
    assert min(worker.sent_offsets[before:]) > 0, "it does not begin again"
    worker.wait_for_idleness()


def test_a_transfer_continues_at_another_broker(start_broker, open_false_broker):
    first, second = open_false_broker(), open_false_broker()
    with Client([first.endpoint, second.endpoint]) as client:
        job = client.submit("x")
        submit = accept(first)
        announce(first, submit["request_id"], len(LARGE))
        fetch, _ = first.receive("fetch")
        arrived = first.chunk(fetch, LARGE)
        first.receive("fetch")  # with the first part confirmed; then the first broker is silent
        assert accept(second)["request_id"] == submit["request_id"]
        announce(second, submit["request_id"], len(LARGE))
        while not job.done():
            fetch, _ = second.receive("fetch")
            assert fetch["offset"] >= arrived
            start = fetch["offset"]
            while start < fetch["offset"] + fetch["length"]:
                about = {**fetch, "offset": start, "length": fetch["offset"] + fetch["length"] - start}
                start = second.chunk(about, LARGE)
            if start == len(LARGE):
                ack, _ = second.receive("ack")
                assert ack == {**ack, "request_ids": [submit["request_id"]], "token": b"t" * 16}
                break
            second.heartbeat()
        assert job.result(PATIENCE).encoded == [LARGE]


def test_a_transfer_that_takes_longer_than_the_liveness_time_succeeds(false_broker):
    size, step = 24_576, 1024
    with Client(false_broker.endpoint) as client:
        job = client.submit("x")
        announce(false_broker, accept(false_broker)["request_id"], size)
        beats, parts = 0, []
        while not job.done():
            # One chunk for each heartbeat of the client: the transfer takes many intervals.
            message, _ = false_broker.receive("fetch", "heartbeat", "ack")
            if message["type"] == "fetch":
                end = message["offset"] + message["length"]
                parts += [{**message, "offset": at, "length": step} for at in range(message["offset"], end, step)]
            elif message["type"] == "ack":
                break
            elif parts:
                beats += 1
                false_broker.chunk(parts.pop(0), LARGE[:size])
            else:
                false_broker.heartbeat()
        assert job.result(PATIENCE).encoded == [LARGE[:size]]
    assert beats >= size // step


def test_a_deadline_during_a_transfer_is_acknowledged(false_broker):
    with Client(false_broker.endpoint) as client:
        job = client.submit("x", timeout_seconds=0.5)
        request_id = accept(false_broker)["request_id"]
        announce(false_broker, request_id, len(LARGE))
        fetch, _ = false_broker.receive("fetch")
        arrived = false_broker.chunk(fetch, LARGE)
        while (message := false_broker.receive("heartbeat", "ack")[0])["type"] == "heartbeat":
            false_broker.heartbeat()
        assert message["request_ids"] == [request_id]
        with pytest.raises(DeadlineExceededError, match=f"{arrived} of {len(LARGE)} bytes"):
            job.result(PATIENCE)


def test_cancelling_during_a_transfer_is_acknowledged(false_broker):
    with Client(false_broker.endpoint) as client:
        job = client.submit("x")
        request_id = accept(false_broker)["request_id"]
        announce(false_broker, request_id, len(LARGE))
        false_broker.receive("fetch")
        job.cancel()
        with pytest.raises(CancelledError):
            job.result(PATIENCE)
        assert false_broker.receive("ack")[0]["request_ids"] == [request_id]


# ---- requests that the broker fetches ----------------------------------------------------------------------


def test_the_broker_fetches_a_large_request_in_chunks(false_broker):
    with Client(false_broker.endpoint) as client:
        client.submit("x", image=PNG + LARGE)
        submit = accept(false_broker)
        sizes, request_id = submit["frame_bytes"], submit["request_id"]
        assert sizes[1] == len(PNG + LARGE)
        about = {"request_id": request_id, "payload_id": request_id, "chunk_bytes": 100_000}
        false_broker.say(type="fetch", offset=sizes[0], length=250_000, **about)
        received = [false_broker.receive("chunk") for _ in range(3)]
        assert [len(data) for _, (data,) in received] == [100_000, 100_000, 50_000]
        assert b"".join(data for _, (data,) in received) == (PNG + LARGE)[:250_000]
        assert [header["offset"] - sizes[0] for header, _ in received] == [0, 100_000, 200_000]


def test_a_broker_that_asks_for_chunks_without_reading_costs_a_limited_number_of_bytes(false_broker):
    image = PNG + random.Random(2).randbytes(8_000_000)
    with Client(false_broker.endpoint) as client:
        job = client.submit("x", image=image, progress=True)
        request_id = accept(false_broker, interval=60.0)["request_id"]
        fetch = {"type": "fetch", "request_id": request_id, "payload_id": request_id, "offset": 0}
        for number in range(60):
            false_broker.say(**fetch, length=8_000_000, chunk_bytes=MAX_CHUNK_BYTES)
            false_broker.say(type="progress", request_id=request_id, step=number, steps=60)
        for number, event in zip(range(60), job.progress(), strict=False):
            assert event.step == number
        assert client._transport._unsent_bytes <= MAX_UNSENT_CHUNK_BYTES
        # Once the broker has read some of them, the client sends chunks again.
        mark, received = 7_700_000, 0
        while True:
            header, (data,) = false_broker.receive("chunk")
            if header["offset"] == mark:
                break
            received += len(data)
            false_broker.say(**{**fetch, "offset": mark}, length=250_000)
        assert received < 60 * 8_000_000 / 2, "most were dropped"


# ---- limits ------------------------------------------------------------------------------------------------


def test_a_frame_longer_than_a_chunk_ends_the_connection(false_broker):
    with Client(false_broker.endpoint) as client:
        client.submit("x")
        accept(false_broker)
        peer, beats = false_broker.peer, 0
        while false_broker.peer == peer:
            # The broker stays alive for the client, so only the long frame can end the connection.
            false_broker.heartbeat()
            false_broker.say(bytes(MAX_CHUNK_BYTES + 1), type="heartbeat")
            false_broker.receive("heartbeat")
            beats += 1
            assert beats < 100
        false_broker.heartbeat()
        assert false_broker.receive("submit")


def test_a_receive_maximum_is_announced(false_broker):
    with pytest.raises(ValueError, match="receive_maximum: expected an integer from 1"):
        Client(false_broker.endpoint, receive_maximum=0)
    with Client(false_broker.endpoint, receive_maximum=7) as client:
        client.submit("x")
        assert false_broker.receive("heartbeat")[0]["receive_maximum"] == 7


# ---- endpoints that refuse the client ----------------------------------------------------------------------


def test_a_client_that_a_full_broker_turns_away_uses_the_next_one(start_broker, start_worker, caplog):
    full, free = start_broker(max_clients=1), start_broker()
    start_worker(free)
    with (
        Client(full.frontend_endpoint) as first,
        Client([full.frontend_endpoint, free.frontend_endpoint]) as second,
    ):
        assert first.stats(PATIENCE)["clients"] == 1
        for seed in range(3):
            assert second.generate("x", seed=seed).seed == seed
    assert caplog.text.count("refused by the broker") == 1


def test_a_client_that_is_turned_away_gets_in_once_there_is_room(start_broker, start_worker, caplog):
    broker = start_broker(max_clients=1)
    start_worker(broker)
    with Client(broker.frontend_endpoint) as second:
        with Client(broker.frontend_endpoint) as first:
            assert first.stats(PATIENCE)["clients"] == 1
            job = second.submit("x", seed=5)
            wait_until(lambda: "refused by the broker" in caplog.text)
            assert first.generate("y", seed=6).seed == 6
            assert not job.done()
        assert job.result(PATIENCE).seed == 5
    assert caplog.text.count("refused by the broker") == 1


def test_a_request_without_a_broker_reports_that_it_waits(monkeypatch, caplog):
    monkeypatch.setattr("imagegen_client.outage.FIRST_SECONDS", 0.05)
    nowhere = "tcp://127.0.0.1:1"
    with Client(nowhere) as client:
        job = client.submit("x", progress=True)
        events = job.progress()
        for _ in range(3):
            event = next(events)
            assert (event.state, event.reason) == ("waiting", f"no broker answers at {nowhere}")
        assert job.latest.state == "waiting"
    assert "waiting for a broker requests=1" in caplog.text
