"""A client process that stays for the whole soak: `python -m benchmarks.soak.resident`.

It mixes requests of all kinds at random times, some through the gateways, asks for statistics, and changes its
client for a new one now and then. On SIGTERM it sends nothing more, waits for what is on its way, and writes its
counts.
"""

import asyncio
import random
import signal
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import click

from benchmarks.soak.counts import Counts
from benchmarks.soak.doors import Doors
from benchmarks.soak.requests import Ask, Judge, WrongError, choose
from imagegen_client import AsyncClient
from imagegen_protocol import ImagegenError

PATIENCE = 180.0
"""Seconds after which a request without an end is lost."""
CHANGE_EVERY = 60.0
STATS_EVERY = 3.0
GATEWAY_SHARE = 0.15


class Resident:
    """Sends until it is told to stop; `rate` requests a second on average."""

    def __init__(self, brokers: list[str], doors: Doors, rate: float, seed: int) -> None:
        self._brokers = brokers
        self._doors = doors
        self._rate = rate
        self._random = random.Random(seed)
        self._judge = Judge()
        # One thread for all pictures: on many, each with an arena of malloc's, it takes long until memory is flat.
        self._desk = ThreadPoolExecutor(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._users: dict[AsyncClient, int] = {}
        """Requests on their way, by client."""
        self.counts = Counts()
        self.stop = asyncio.Event()

    async def run(self) -> None:
        """Run until told to stop, then until all is answered."""
        client, loop = AsyncClient(self._brokers), asyncio.get_running_loop()
        change, ask_stats = loop.time() + CHANGE_EVERY, loop.time()
        while not self.stop.is_set():
            if loop.time() >= change:
                change += CHANGE_EVERY
                self._start(self._close_later(client))
                client = AsyncClient(self._brokers)
            if loop.time() >= ask_stats:
                ask_stats = loop.time() + STATS_EVERY
                self._start(self._stats(client))
            if self._random.random() < GATEWAY_SHARE:
                self._start(self._through_gateway())
            else:
                self._start(self._ask(client, choose(self._random)))
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stop.wait(), self._random.expovariate(self._rate))
        await asyncio.gather(*self._tasks)
        await client.close()
        self._desk.shutdown()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _close_later(self, client: AsyncClient) -> None:
        while self._users.get(client):
            await asyncio.sleep(0.5)
        self._users.pop(client, None)
        await client.close()

    async def _stats(self, client: AsyncClient) -> None:
        self._users[client] = self._users.get(client, 0) + 1
        try:
            # It may fall into the restart of the only broker that the client knows of.
            with suppress(ImagegenError):
                await client.stats(timeout=30.0)
        finally:
            self._users[client] -= 1

    async def _ask(self, client: AsyncClient, ask: Ask) -> None:
        self._users[client] = self._users.get(client, 0) + 1
        self.counts.sent[ask.kind] += 1
        try:
            async with asyncio.timeout(PATIENCE):
                end = await self._end_of(client, ask)
            self.counts.ended[f"{ask.kind}: {end}"] += 1
        except TimeoutError:
            self.counts.lose(f"{ask.kind}: no end after {PATIENCE:.0f} s")
        except WrongError as error:
            self.counts.find_wrong(str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, the request is lost, and that is counted
            self.counts.lose(f"{ask.kind}: {error!r}")
        finally:
            self._users[client] -= 1

    async def _end_of(self, client: AsyncClient, ask: Ask) -> str:
        try:
            if ask.cancel_after is not None:
                job = client.submit(**ask.options)
                await asyncio.sleep(ask.cancel_after)
                job.cancel()
                result = await job.result()
            elif ask.follow:
                signs: list[object] = []
                result = await client.generate(**ask.options, on_progress=signs.append, preview=True)
            else:
                result = await client.generate(**ask.options)
        except ImagegenError as error:
            if error.code not in ask.ends:
                raise
            return error.code
        await asyncio.get_running_loop().run_in_executor(self._desk, self._judge.check, ask, result)
        return "answered"

    async def _through_gateway(self) -> None:
        kind = self._random.choice(("images", "images", "edits", "jobs", "bad"))
        self.counts.sent[f"gateway {kind}"] += 1
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.to_thread(self._doors.call, kind, self._random.getrandbits(40), self.counts)
            self.counts.ended[f"gateway {kind}: answered"] += 1
        except WrongError as error:
            self.counts.find_wrong(str(error))
        except Exception as error:  # noqa: BLE001 - as above
            self.counts.lose(f"gateway {kind}: {error!r}")


async def live(resident: Resident) -> None:
    """Run until SIGTERM."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, resident.stop.set)
    await resident.run()


@click.command()
@click.option("--broker", "brokers", multiple=True, required=True)
@click.option("--gateway", "gateways", multiple=True, required=True)
@click.option("--rate", type=float, default=2.0, help="Requests a second.")
@click.option("--seed", type=int, default=0)
@click.option("--report", type=click.Path(path_type=Path), required=True)
def main(brokers: tuple[str, ...], gateways: tuple[str, ...], rate: float, seed: int, report: Path) -> None:
    """Send mixed requests until SIGTERM."""
    resident = Resident(list(brokers), Doors(list(gateways)), rate, seed)
    asyncio.run(live(resident))
    resident.counts.write(report)


if __name__ == "__main__":
    main()
