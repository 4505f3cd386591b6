"""Connections to the brokers, and what is in flight."""

import asyncio

from imagegen_gateway import fleet as module
from imagegen_gateway.client_pool import Fleet, InFlightCounter
from imagegen_gateway.config import Settings


def test_a_key_has_a_connection_of_its_own_until_it_is_idle(tmp_path, monkeypatch):
    async def run():
        fleet = Fleet(Settings(brokers=(f"ipc://{tmp_path}/nobody",), state_folder=tmp_path))
        with fleet.client("a") as first, fleet.client("a") as same, fleet.client("b") as other:
            assert first is same
            assert first is not other
        monkeypatch.setattr(module, "IDLE_SECONDS", -1.0)
        with fleet.client("a") as used:
            await fleet.close_idle()
            assert used is first
        with fleet.client("b") as again:
            assert again is not other, "it was idle, and closed"
        await fleet.close()

    asyncio.run(run())


def test_what_has_ended_is_not_counted():
    in_flight = InFlightCounter()
    in_flight.begin("a")
    in_flight.begin("a")
    in_flight.end("a")
    assert (in_flight["a"], in_flight["b"]) == (1, 0)
    in_flight.end("a")
    assert in_flight["a"] == 0
