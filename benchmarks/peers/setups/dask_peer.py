"""dask.distributed: a local cluster of one-threaded workers under nannies, and its asynchronous client.

It has no dynamic batching, so each request is a batch of one. Tasks of dead workers are run again by default.
"""

import asyncio
from typing import Any

from distributed import Client, LocalCluster

from benchmarks.peers.setups.device import Work, execute
from benchmarks.peers.setups.load import drive, tell


def draw(number: int) -> bytes:
    """Make one image, on a worker."""
    return execute([number])[0]


async def main() -> dict[str, Any]:
    """Start the cluster, ask, stop."""
    work = Work.of_environment()
    async with (
        LocalCluster(
            n_workers=len(work.speeds),
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            asynchronous=True,
        ) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):

        async def call(number: int) -> bytes:
            # Not pure: the same call twice is two requests.
            result: bytes = await client.submit(draw, number, pure=False)
            return result

        return await drive(work, call)


if __name__ == "__main__":
    tell(asyncio.run(main()))
