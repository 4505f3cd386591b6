"""The event stream of the fleet's state."""

import asyncio
import json
from contextlib import aclosing

import pytest

from imagegen_gateway import fleet_feed
from imagegen_gateway.fleet_feed import FleetFeed
from imagegen_protocol import BrokerUnreachableError
from tests.statistics import statistics_of


class Statistics:
    """A client pool that returns the given answers in order, and counts the requests."""

    def __init__(self, *answers):
        self.answers = answers
        self.requests = 0

    async def stats(self):
        answer = self.answers[min(self.requests, len(self.answers) - 1)]
        self.requests += 1
        if isinstance(answer, Exception):
            raise answer
        return answer


def of_gpus(**images):
    """Return statistics with these workers and the number of images that each has generated."""
    rows = [
        {"worker": name, "host": "h", "gpu_id": 0, "pid": 1, "state": "ready", "total_images": count, "http": None}
        for name, count in images.items()
    ]
    return statistics_of(queued_requests=4, answers_per_second=2.0, models=["m"], per_gpu_stats=rows)


@pytest.fixture(autouse=True)
def short_interval(monkeypatch):
    """Poll again at once."""
    monkeypatch.setattr(fleet_feed, "POLL_SECONDS", 0.001)


async def follow(feed, statistics, count, stopping=None):
    """Return the data of the first `count` events that a follower receives."""
    received = []
    async with aclosing(feed.events(statistics, stopping or asyncio.Event())) as events:
        async for event in events:
            name, data = event.decode().strip().split("\n")
            assert name == "event: fleet"
            received.append(json.loads(data.removeprefix("data: ")))
            if len(received) == count:
                break
    return received


def test_an_event_has_the_state_of_the_broker_and_of_each_gpu():
    [data] = asyncio.run(follow(FleetFeed(), Statistics(of_gpus(b=1, a=2)), 1))
    assert data["lost_for_seconds"] is None
    assert data["estimated_wait_seconds"] == 2.0
    assert [gpu["worker"] for gpu in data["gpus"]] == ["a", "b"]


def test_each_poll_adds_a_rate_to_the_trend():
    events = asyncio.run(follow(FleetFeed(), Statistics(of_gpus(a=0), of_gpus(a=5)), 3))
    trends = [gpu["images_per_second"] for event in events for gpu in event["gpus"]]
    assert [len(trend) for trend in trends] == [0, 1, 2]
    assert trends[1][0] > 0


def test_a_lost_broker_is_reported_with_its_last_statistics():
    statistics = Statistics(of_gpus(a=1), BrokerUnreachableError("gone"), of_gpus(a=1))
    events = asyncio.run(follow(FleetFeed(), statistics, 3))
    assert [event["lost_for_seconds"] is None for event in events] == [True, False, True]
    assert [gpu["worker"] for gpu in events[1]["gpus"]] == ["a"]


def test_the_broker_is_polled_once_for_all_followers():
    async def run():
        feed, statistics = FleetFeed(), Statistics(of_gpus(a=1))
        received = await asyncio.gather(*(follow(feed, statistics, 3) for _ in range(20)))
        return received, statistics.requests

    received, requests = asyncio.run(run())
    assert all(events == received[0] for events in received)
    assert requests <= 4


def test_a_further_follower_gets_the_current_state_at_once(monkeypatch):
    async def run():
        feed, statistics = FleetFeed(), Statistics(of_gpus(a=1))
        async with aclosing(feed.events(statistics, asyncio.Event())) as events:
            await anext(events)
            await follow(feed, statistics, 1)
        return statistics.requests

    monkeypatch.setattr(fleet_feed, "POLL_SECONDS", 3600)
    assert asyncio.run(asyncio.wait_for(run(), 60)) == 1


def test_the_broker_is_not_polled_without_followers():
    async def run():
        feed, statistics = FleetFeed(), Statistics(of_gpus(a=1))
        await follow(feed, statistics, 2)
        before = statistics.requests
        for _ in range(10):
            await asyncio.sleep(0.002)
        assert statistics.requests == before
        return await follow(feed, statistics, 1)

    assert len(asyncio.run(run())) == 1


def test_an_unexpected_error_is_raised_in_the_followers():
    async def run():
        feed, statistics = FleetFeed(), Statistics(ZeroDivisionError(), of_gpus(a=1))
        with pytest.raises(ZeroDivisionError):
            await follow(feed, statistics, 1)
        return await follow(feed, statistics, 1)

    assert len(asyncio.run(run())) == 1


def test_the_stream_ends_when_the_gateway_shuts_down():
    async def run():
        stopping = asyncio.Event()
        following = asyncio.create_task(follow(FleetFeed(), Statistics(of_gpus(a=1)), 1_000_000, stopping))
        await asyncio.sleep(0.01)
        stopping.set()
        return await following

    assert asyncio.run(run())
