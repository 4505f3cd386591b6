"""The memory of requests."""

import asyncio
from types import SimpleNamespace

import pytest

from imagegen_gateway.admission import HeldResponse, RequestMemory
from imagegen_gateway.core.byte_budget import ByteBudget
from imagegen_gateway.errors import ApiError
from imagegen_gateway.metrics import Metrics

ALICE, BOB = SimpleNamespace(id="alice"), SimpleNamespace(id="bob")


@pytest.fixture
def services():
    return SimpleNamespace(body_bytes=ByteBudget(per_key=200_000, total=300_000), metrics=Metrics())


class SlowClient:
    """A client that reads each part of a response only when it is told to."""

    def __init__(self):
        self.reading, self.received = asyncio.Event(), b""

    async def send(self, message):
        await self.reading.wait()
        body = message.get("body", b"")
        assert len(body) <= 65536
        self.received += body

    async def receive(self):
        await asyncio.Event().wait()


def test_unread_responses_count_for_their_key_until_they_are_sent(services):
    async def run():
        client, content = SlowClient(), bytes(range(250)) * 600
        response = HeldResponse(services, ALICE, content)
        assert response.headers["content-length"] == str(len(content))
        scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
        sending = asyncio.create_task(response(scope, client.receive, client.send))
        with pytest.raises(ApiError) as caught:
            HeldResponse(services, ALICE, content)
        assert (caught.value.status, caught.value.code) == (429, "too_many_bytes")
        with pytest.raises(ApiError) as caught:
            HeldResponse(services, BOB, 2 * content)
        assert caught.value.status == 429
        HeldResponse(services, BOB, content[:100])
        client.reading.set()
        await sending
        assert client.received == content
        assert services.body_bytes.held == 100

    asyncio.run(run())


def test_bodies_without_a_length_are_counted_as_they_arrive(services):
    memory = RequestMemory(services, ALICE)
    for _ in range(4):
        memory.receive(50_000)
    with pytest.raises(ApiError):
        memory.receive(1)
    memory.free()
    assert services.body_bytes.held == 0


def test_bytes_beyond_the_stated_length_are_counted(services):
    memory = RequestMemory(services, ALICE)
    memory.reserve(100)
    memory.receive(60)
    memory.receive(60)
    assert services.body_bytes["alice"] == 120


def test_all_keys_have_a_total(services):
    RequestMemory(services, ALICE).reserve(200_000)
    with pytest.raises(ApiError) as caught:
        RequestMemory(services, BOB).reserve(100_001)
    assert (caught.value.status, caught.value.code) == (503, "overloaded")


def test_responses_are_counted_beyond_the_limits(services):
    memory = RequestMemory(services, ALICE)
    memory.hold(1_000_000)
    with pytest.raises(ApiError):
        RequestMemory(services, ALICE).reserve(1)
    memory.free()
    RequestMemory(services, ALICE).reserve(1)
