"""ipyparallel: a local cluster of engines and a load-balanced view that tries tasks of dead engines again.

It has no dynamic batching, so each request is a batch of one.
"""

import asyncio
from typing import Any

import ipyparallel

from benchmarks.peers.setups.device import Work
from benchmarks.peers.setups.load import drive, tell

RETRIES = 3


def draw(number: int) -> bytes:
    """Make one image, on an engine, which gets this function and nothing around it."""
    from benchmarks.peers.setups.device import execute

    return execute([number])[0]


async def ask(work: Work, view: Any) -> dict[str, Any]:
    """Drive the load."""

    async def call(number: int) -> bytes:
        result: bytes = await asyncio.wrap_future(view.apply_async(draw, number))
        return result

    return await drive(work, call)


def main() -> None:
    """Start the cluster, ask, stop."""
    work = Work.of_environment()
    with ipyparallel.Cluster(n=len(work.speeds), log_level=30) as client:
        view = client.load_balanced_view()
        view.retries = RETRIES
        tell(asyncio.run(ask(work, view)))


if __name__ == "__main__":
    main()
