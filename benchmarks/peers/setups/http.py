"""A peer's HTTP server as a child process, and its client: one aiohttp session that keeps connections alive."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Mapping

import aiohttp

from benchmarks.peers.setups.device import Work
from benchmarks.peers.setups.load import START_SECONDS, Call, drive, free_port, tell


def measure(module: str, path: str, environment: Mapping[str, str] | None = None) -> None:
    """Start `python -m MODULE serve`, with PORT in its environment, ask it at `path`, stop it."""
    work, port = Work.of_environment(), free_port()
    url = f"http://127.0.0.1:{port}{path}"
    command = [sys.executable, "-m", module, "serve"]
    # Its log goes where the runner wants ours.
    with subprocess.Popen(
        command, stdout=sys.stderr, env={**os.environ, "PORT": str(port), **(environment or {})}
    ) as server:
        try:
            tell(asyncio.run(_ask(work, url)))
        finally:
            server.terminate()
            try:
                server.wait(2)
            except subprocess.TimeoutExpired:
                server.kill()


async def _ask(work: Work, url: str) -> dict[str, object]:
    timeout = aiohttp.ClientTimeout(total=work.patience)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def call(number: int) -> bytes:
            async with session.post(url, json={"number": number, "prompt": "a red circle"}) as answer:
                body = await answer.read()
                answer.raise_for_status()
                return bytes(body)

        await until_up(call)
        return await drive(work, call)


async def until_up(call: Call) -> None:
    """Ask until there is a good answer."""
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            await call(0)
        except Exception:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.1)
        else:
            return
