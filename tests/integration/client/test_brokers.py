"""Brokers that restart, are overloaded, or send invalid messages."""

import msgpack
import pytest

from imagegen_client import (
    BrokerUnreachableError,
    Client,
    OverloadedError,
    UnsupportedVersionError,
)
from tests.integration.client.peers import NOWHERE, PATIENCE, PNG


def test_requests_are_resent_to_a_restarted_broker(start_broker, broker, client, worker):
    job = client.submit("hold", seed=5)
    worker.wait_for_work(1)
    frontend, backend = broker.frontend_endpoint, broker.backend_endpoint
    start_broker.stop(broker)
    start_broker(frontend, backend)
    worker.let_go.set()
    assert job.result(PATIENCE).seed == 5
    assert worker.begun == ["hold"], "made once"


def test_failover_to_the_next_broker(start_broker, broker, start_worker):
    second = start_broker()
    worker = start_worker(second)
    with Client([broker.frontend_endpoint, second.frontend_endpoint]) as client:
        job = client.submit("x", seed=5)
        client.stats()
        start_broker.stop(broker)
        assert job.result(PATIENCE).seed == 5
    worker.wait_for_idleness()


def test_no_broker():
    with Client(NOWHERE, connect_timeout=0.2) as client:
        with pytest.raises(BrokerUnreachableError, match=r"no broker answered at tcp://127\.0\.0\.1:1 within"):
            client.generate("x")
        with pytest.raises(BrokerUnreachableError):
            client.stats(timeout=0.1)


def test_a_full_queue_is_an_error(start_broker, start_worker):
    broker = start_broker(max_requests=2)
    worker = start_worker(broker)
    with Client(broker.frontend_endpoint) as client:
        jobs = [client.submit("hold") for _ in range(2)]
        worker.wait_for_work(2)
        with pytest.raises(OverloadedError) as caught:
            client.generate("x")
        assert caught.value.retry_after_seconds > 0
        worker.let_go.set()
        assert [job.result(PATIENCE).worker for job in jobs] == ["raw", "raw"]


def test_invalid_messages_from_a_broker_are_tolerated(false_broker, caplog):
    with Client(false_broker.endpoint) as client:
        job = client.submit("x")
        false_broker.receive("heartbeat")
        for frames in (
            [b""],
            [b"\xc1"],
            [b"\x91" * 5000],
            [msgpack.packb({"type": "heartbeat", "v": 2})],
            [b""] * 99,
        ):
            false_broker.send(*frames)
        false_broker.heartbeat(interval=float("inf"))
        false_broker.heartbeat(interval=0)
        false_broker.heartbeat()  # the first message that can be read
        message, _ = false_broker.receive("submit")
        false_broker.say(type="result", request_id=message["request_id"], worker="w")
        with pytest.raises(Exception, match="bad result message"):
            job.result(PATIENCE)
        assert false_broker.receive("ack")[0]["request_ids"] == [message["request_id"]]
    assert "protocol_error" in caplog.text
    assert "I/O thread" not in caplog.text


def test_a_full_queue_is_retried_on_request(false_broker):
    with Client(false_broker.endpoint, retry_overloaded=True) as client:
        job = client.submit("x", seed=4)
        false_broker.receive("heartbeat")
        false_broker.heartbeat()
        first, body = false_broker.receive("submit")
        refusal = {"code": "overloaded", "message": "full", "retry_after_seconds": 0.05}
        false_broker.say(type="error", request_id=first["request_id"], **refusal)
        again, same = false_broker.receive("submit")
        assert again["request_id"] != first["request_id"]
        assert same == body
        answer = {"type": "result", "request_id": again["request_id"], "worker": "w", "model": "m"}
        image = {"format": "png", "width": 4, "height": 2, "seed": 4}
        false_broker.send(msgpack.packb({"v": 2, "images": [image], **answer}), PNG)
        assert job.result(PATIENCE).seed == 4


def test_undecodable_statistics_are_a_protocol_error(false_broker):
    with Client(false_broker.endpoint) as client:
        for frame, words in ((b"\xc1", "can't be read: "), (msgpack.packb([1]), "can't be read: .*got `array`")):
            future = client.request_stats()
            false_broker.receive("heartbeat")
            false_broker.heartbeat()
            query, _ = false_broker.receive("stats")
            false_broker.send(msgpack.packb({"v": 2, "type": "stats", "request_id": query["request_id"]}), frame)
            with pytest.raises(Exception, match=words):
                future.result(PATIENCE)


def test_a_broker_of_another_version_ends_all_requests(false_broker):
    with Client(false_broker.endpoint) as client:
        job = client.submit("x")
        false_broker.receive("heartbeat")
        false_broker.send(msgpack.packb({"v": 3, "type": "hello"}))
        with pytest.raises(UnsupportedVersionError, match="the message has 3"):
            job.result(PATIENCE)
