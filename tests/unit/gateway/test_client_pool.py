"""Connections to the brokers, and counts of requests in flight."""

import asyncio

from imagegen_gateway import client_pool
from imagegen_gateway.client_pool import ClientPool, InFlightCounter
from imagegen_gateway.config import Settings


def test_each_key_has_its_own_connection_until_it_is_idle(tmp_path, monkeypatch):
    async def run():
        pool = ClientPool(Settings(brokers=(f"ipc://{tmp_path}/absent",), state_folder=tmp_path))
        with pool.client("a") as first, pool.client("a") as same, pool.client("b") as other:
            assert first is same
            assert first is not other
        monkeypatch.setattr(client_pool, "IDLE_SECONDS", -1.0)
        with pool.client("a") as used:
            await pool.close_idle()
            assert used is first
        with pool.client("b") as again:
            assert again is not other, "the idle connection was closed"
        await pool.close()

    asyncio.run(run())


def test_ended_requests_are_not_counted():
    in_flight = InFlightCounter()
    in_flight.begin("a")
    in_flight.begin("a")
    in_flight.end("a")
    assert (in_flight["a"], in_flight["b"]) == (1, 0)
    in_flight.end("a")
    assert in_flight["a"] == 0
