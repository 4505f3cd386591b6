"""The stream of the fleet: one look for all who watch, and what it tells."""

import asyncio
import json
from contextlib import aclosing

import pytest

from imagegen_gateway import fleet_feed
from imagegen_gateway.fleet_feed import FleetFeed
from imagegen_protocol import BrokerUnreachableError
from tests.statistics import statistics_of


class Statistics:
    """Stands for the brokers: counts how often it is asked, and answers with what comes next."""

    def __init__(self, *answers):
        self.answers = answers
        self.asked = 0

    async def stats(self):
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, Exception):
            raise answer
        return answer


def of_gpus(**images):
    """Return statistics with these workers, and the images that each has made."""
    rows = [
        {"worker": name, "host": "h", "gpu_id": 0, "pid": 1, "state": "ready", "total_images": made, "http": None}
        for name, made in images.items()
    ]
    return statistics_of(queued_requests=4, answers_per_second=2.0, models=["m"], per_gpu_stats=rows)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Look again at once."""
    monkeypatch.setattr(fleet_feed, "POLL_SECONDS", 0.001)


async def watch(feed, statistics, count, stopping=None):
    """Return the first `count` events of one who watches."""
    told = []
    async with aclosing(feed.events(statistics, stopping or asyncio.Event())) as events:
        async for event in events:
            name, data = event.decode().strip().split("\n")
            assert name == "event: fleet"
            told.append(json.loads(data.removeprefix("data: ")))
            if len(told) == count:
                break
    return told


def test_it_tells_of_the_broker_and_each_gpu():
    [told] = asyncio.run(watch(FleetFeed(), Statistics(of_gpus(b=1, a=2)), 1))
    assert told["lost_for_seconds"] is None
    assert told["estimated_wait_seconds"] == 2.0
    assert [gpu["worker"] for gpu in told["gpus"]] == ["a", "b"]


def test_rates_grow_into_a_trend():
    told = asyncio.run(watch(FleetFeed(), Statistics(of_gpus(a=0), of_gpus(a=5)), 3))
    trends = [gpu["images_per_second"] for one in told for gpu in one["gpus"]]
    assert [len(trend) for trend in trends] == [0, 1, 2]
    assert trends[1][0] > 0


def test_a_broker_that_is_lost_is_told_with_what_it_said_last():
    told = asyncio.run(
        watch(FleetFeed(), Statistics(of_gpus(a=1), BrokerUnreachableError("gone"), of_gpus(a=1)), 3)
    )
    assert [one["lost_for_seconds"] is None for one in told] == [True, False, True]
    assert [gpu["worker"] for gpu in told[1]["gpus"]] == ["a"]


def test_however_many_watch_the_broker_is_asked_once_a_look():
    async def run():
        feed, statistics = FleetFeed(), Statistics(of_gpus(a=1))
        told = await asyncio.gather(*(watch(feed, statistics, 3) for _ in range(20)))
        return told, statistics.asked

    told, asked = asyncio.run(run())
    assert all(one == told[0] for one in told)
    assert asked <= 4


def test_nobody_is_asked_while_nobody_watches():
    async def run():
        feed, statistics = FleetFeed(), Statistics(of_gpus(a=1))
        await watch(feed, statistics, 2)
        before = statistics.asked
        for _ in range(10):
            await asyncio.sleep(0.002)
        assert statistics.asked == before
        return await watch(feed, statistics, 1)

    assert len(asyncio.run(run())) == 1


def test_those_who_watch_hear_of_a_failure():
    async def run():
        feed, statistics = FleetFeed(), Statistics(ZeroDivisionError(), of_gpus(a=1))
        with pytest.raises(ZeroDivisionError):
            await watch(feed, statistics, 1)
        return await watch(feed, statistics, 1)

    assert len(asyncio.run(run())) == 1


def test_it_ends_when_the_gateway_does():
    async def run():
        stopping = asyncio.Event()
        watching = asyncio.create_task(watch(FleetFeed(), Statistics(of_gpus(a=1)), 1_000_000, stopping))
        await asyncio.sleep(0.01)
        stopping.set()
        return await watching

    assert asyncio.run(run())
