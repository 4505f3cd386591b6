"""The protocol as docs/protocol.md has it, spoken with nothing but `zmq` and `msgpack`."""

import os

import msgpack
import pytest

from tests.raw import Peers, ready, result, submit


@pytest.fixture
def dial():
    peers = Peers()
    yield peers
    peers.close()


def test_a_request_from_submit_to_release(start_broker, dial):
    broker = start_broker()
    client, worker = dial(broker.frontend_endpoint), dial(broker.backend_endpoint)
    ready(worker)
    request_id = os.urandom(16)
    body = submit(client, request_id, progress=True)
    heartbeat, _ = client.receive("heartbeat")
    assert len(heartbeat["epoch"]) == 16
    assert heartbeat["session"] > 0
    accepted, _ = client.receive("accepted")
    assert accepted["request_ids"] == [request_id]
    work, frames = worker.receive("work")
    assert (work["request_id"], work["attempt"], work["model"]) == (request_id, 1, "raw-model")
    assert frames == [body]
    worker.send({"type": "progress", "request_id": request_id, "step": 1, "steps": 2})
    while (progress := client.receive("progress")[0]).get("state") == "queued":
        assert progress["place"] == 0, "a new broker only listens for a while"
    assert (progress["step"], progress["steps"]) == (1, 2)
    picture = os.urandom(50_000)
    result(worker, request_id, picture, b"second")
    answer, images = client.receive("result")
    assert answer["request_id"] == request_id
    assert images == [picture, b"second"]
    client.send({"type": "ack", "request_ids": [request_id]})
    release, _ = worker.receive("release")
    assert release["request_ids"] == [request_id]


def test_an_answer_is_asked_for_again_until_it_is_acknowledged(start_broker, dial):
    broker = start_broker()
    client, worker = dial(broker.frontend_endpoint), dial(broker.backend_endpoint)
    session = ready(worker)["session"]
    request_id = os.urandom(16)
    submit(client, request_id)
    worker.receive("work")
    result(worker, request_id, b"image")
    client.receive("result")
    while True:  # both stay alive, and the client does not acknowledge
        client.send({"type": "heartbeat"})
        worker.send({"type": "heartbeat", "session": session, "finished": [request_id]})
        message, _ = worker.receive()
        if message["type"] == "resend":
            break
    assert message["request_ids"] == [request_id]
    result(worker, request_id, b"image")
    assert client.receive("result")[1] == [b"image"]


def repeat_until(peer, message, holds):
    """Send a message until a heartbeat arrives for which a condition holds."""
    for _ in range(100):
        peer.send(message)
        while peer.socket.poll(300):
            if holds(peer.receive("heartbeat")[0]):
                return
    raise AssertionError("no such heartbeat came")


def test_a_restarted_broker_finds_the_request_at_its_worker(start_broker, dial):
    broker = start_broker()
    client, worker = dial(broker.frontend_endpoint), dial(broker.backend_endpoint)
    ready(worker)
    request_id = os.urandom(16)
    submit(client, request_id)
    first_epoch = client.receive("heartbeat")[0]["epoch"]
    worker.receive("work")
    frontend, backend = broker.frontend_endpoint, broker.backend_endpoint
    start_broker.stop(broker)
    start_broker(frontend, backend)
    # A message that is sent before libzmq notices the broken connection is lost.
    report = {"type": "heartbeat", "session": 1, "running": [request_id]}
    repeat_until(worker, report, lambda heartbeat: heartbeat["session"] == 0)
    ready(worker, running=[request_id])
    repeat_until(client, {"type": "heartbeat"}, lambda heartbeat: heartbeat["epoch"] != first_epoch)
    submit(client, request_id)
    assert worker.receive("resend")[0]["request_ids"] == [request_id]
    result(worker, request_id, b"made once")
    assert client.receive("result")[1] == [b"made once"]


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([b""], "protocol_error"),
        ([b"\xc1rubbish"], "protocol_error"),
        ([b"\x91" * 5000], "protocol_error"),
        ([os.urandom(70_000)], "protocol_error"),
        ([msgpack.packb({"v": 1, "type": "submit"})], "unsupported_version"),
        ([msgpack.packb({"v": 2, "type": "dance"})], "protocol_error"),
        ([msgpack.packb({"v": 2, "type": "submit", "request_id": b"short"}), b""], "protocol_error"),
        ([msgpack.packb({"v": 2, "type": "submit", "request_id": b"x" * 16})], "invalid_request"),
        ([msgpack.packb({"v": 2, "type": "submit", "request_id": b"x" * 16}), b"b" * 100_000], "invalid_request"),
        ([msgpack.packb({"v": 2, "type": "submit", "request_id": b"x" * 16}), *[b""] * 100], "protocol_error"),
    ],
)
def test_rubbish_is_answered_and_the_broker_carries_on(start_broker, dial, frames, code):
    broker = start_broker()
    client = dial(broker.frontend_endpoint)
    client.socket.send_multipart(frames)
    error, _ = client.receive("error")
    assert error["code"] == code
    assert error["message"]
    request_id = os.urandom(16)
    submit(client, request_id)
    assert client.receive("accepted")[0]["request_ids"] == [request_id]


def test_rubbish_from_a_worker_is_answered_too(start_broker, dial):
    broker = start_broker()
    worker = dial(broker.backend_endpoint)
    worker.socket.send_multipart([b"\xc1", b"x"])
    assert worker.receive("error")[0]["code"] == "protocol_error"
    worker.send({"type": "ready", "name": "half"})
    assert "missing required field" in worker.receive("error")[0]["message"]
    ready(worker)


def test_unknown_header_keys_are_ignored(start_broker, dial):
    broker = start_broker()
    client = dial(broker.frontend_endpoint)
    submit(client, b"k" * 16, of_a_later_version={"a": [1, 2]})
    assert client.receive("accepted")[0]["request_ids"] == [b"k" * 16]


def test_statistics_travel_as_a_map(start_broker, dial):
    broker = start_broker()
    client, worker = dial(broker.frontend_endpoint), dial(broker.backend_endpoint)
    ready(worker)
    client.send({"type": "stats", "request_id": os.urandom(16)})
    _, (frame,) = client.receive("stats")
    (gpu,) = msgpack.unpackb(frame)["per_gpu_stats"]
    assert gpu["worker"] == "raw"
    for field in ("gpu_id", "current_queue_depth", "total_requests", "total_batches", "avg_batch_size"):
        assert field in gpu


def test_a_request_goes_to_the_worker_that_has_its_model_loaded(start_broker, dial):
    broker = start_broker()
    client = dial(broker.frontend_endpoint)
    workers = {name: dial(broker.backend_endpoint) for name in ("m", "n")}
    for name, worker in workers.items():
        ready(worker, name=f"has {name}", models=["m", "n"], warm=[name])
    for name in ("m", "n", "n"):
        request_id = os.urandom(16)
        submit(client, request_id, model=name)
        work, _ = workers[name].receive("work")
        assert (work["request_id"], work["model"], work["alone"]) == (request_id, name, False)
    client.send({"type": "stats", "request_id": os.urandom(16)})
    _, (frame,) = client.receive("stats")
    gpus = msgpack.unpackb(frame)["per_gpu_stats"]
    assert {gpu["worker"]: gpu["warm_models"] for gpu in gpus} == {"has m": ["m"], "has n": ["n"]}


def test_a_place_in_the_queue_is_told_as_it_changes(start_broker, dial):
    broker = start_broker(interval=1.0, liveness=30)
    client, worker = dial(broker.frontend_endpoint), dial(broker.backend_endpoint)
    ready(worker, capacity=1, seconds_per_image=5.0)
    ids = [os.urandom(16) for _ in range(3)]
    submit(client, ids[0])
    worker.receive("work")
    submit(client, ids[1])
    submit(client, ids[2], progress=True)
    told, _ = client.receive("progress")
    assert (told["request_id"], told["state"], told["place"], told["attempt"]) == (ids[2], "queued", 1, 1)
    client.send({"type": "cancel", "request_id": ids[1]})
    told, _ = client.receive("progress")
    assert (told["place"], told["seconds_to_start"]) == (0, 5.0)
