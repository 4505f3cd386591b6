"""Celery with Redis as broker and as store of results; a worker of one process for each device.

Its client has no asynchronous door: a loop watches the socket on which news of results come, as Celery's own `get`
does, but for all results at once.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from benchmarks.peers.setups.device import Work
from benchmarks.peers.setups.load import START_SECONDS, drive, free_port, tell


@contextmanager
def running(command: list[str]) -> Iterator[None]:
    """Run a process meanwhile; its output goes to the log."""
    process = subprocess.Popen(command, stdout=sys.stderr)
    try:
        yield
    finally:
        process.kill()  # its warm end takes seconds, and nobody waits for anything any more
        process.wait()


def main() -> None:
    """Start Redis and the workers, ask, stop."""
    work, port = Work.of_environment(), free_port()
    redis = shutil.which("redis-server")
    if redis is None:
        raise SystemExit("redis-server is missing (on Debian: apt install redis-server)")
    os.environ["REDIS_URL"] = f"redis://127.0.0.1:{port}/0"
    with ExitStack() as stack:
        server = [redis, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", work.folder]
        stack.enter_context(running(server))
        module = "benchmarks.peers.setups.celery_app"
        for number in range(len(work.speeds)):
            worker = [sys.executable, "-m", "celery", "-A", module, "worker", "-n", f"gpu{number}@peers"]
            options = ["--concurrency", "1", "--loglevel", "info", "--without-gossip", "--without-mingle"]
            stack.enter_context(running([*worker, *options]))
        tell(asyncio.run(_ask(work)))


async def _ask(work: Work) -> dict[str, object]:
    from benchmarks.peers.setups.celery_app import app, draw

    loop = asyncio.get_running_loop()
    end = time.monotonic() + START_SECONDS
    while len(await asyncio.to_thread(app.control.ping, timeout=0.5)) < len(work.speeds):
        if time.monotonic() > end:
            raise SystemExit("Celery's workers did not start")
    consumer = app.backend.result_consumer
    consumer.start("none")
    channel = consumer._pubsub.connection
    loop.add_reader(channel._sock, _drain, consumer, channel)

    def settle(arrival: "asyncio.Future[bytes]", done: Any) -> None:
        if arrival.done():
            return
        if isinstance(done.result, BaseException):
            arrival.set_exception(done.result)
        else:
            arrival.set_result(done.result)

    async def call(number: int) -> bytes:
        arrival: asyncio.Future[bytes] = loop.create_future()
        result = draw.delay(number)
        result.then(partial(settle, arrival), on_error=partial(settle, arrival))
        return await arrival

    return await drive(work, call)


def _drain(consumer: Any, channel: Any) -> None:
    """Take in all news of results that have come."""
    while channel.can_read(timeout=0):
        consumer.drain_events(timeout=0)


if __name__ == "__main__":
    main()
