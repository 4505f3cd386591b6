"""Ray Serve: a deployment with a replica for each device and `@serve.batch`, asked through its Python handle.

The handle, not HTTP: it is the quicker of its two doors.
"""

import asyncio
import logging
from typing import Any

import ray
from ray import serve

from benchmarks.peers.setups.device import Device, Work
from benchmarks.peers.setups.load import drive, tell

BATCHES_A_REPLICA = 2
"""Requests that a replica may have, in batches: one runs, one waits."""


class Draw:
    """One device."""

    def __init__(self) -> None:
        self._device = Device(Work.of_environment())

    async def __call__(self, number: int) -> bytes:
        """Make one image."""
        # Beside the replica's event loop, which takes in the next ones meanwhile.
        return (await asyncio.to_thread(self._device.run, [number]))[0]


class DrawNothing(Draw):
    """One device whose work takes no time, so that a thread for it would only cost."""

    async def __call__(self, number: int) -> bytes:
        """Return at once."""
        return self._device.run([number])[0]


def batching(work: Work) -> type:
    """Return a deployment's class that batches."""

    class DrawBatches(Draw):
        def __init__(self) -> None:
            super().__init__()
            self._lock = asyncio.Lock()

        @serve.batch(max_batch_size=work.max_batch_size, batch_wait_timeout_s=work.batch_wait)
        async def _batch(self, numbers: list[int]) -> list[bytes]:
            async with self._lock:
                return await asyncio.to_thread(self._device.run, numbers)

        async def __call__(self, number: int) -> bytes:
            result: bytes = await self._batch(number)
            return result

    return DrawBatches


async def ask(work: Work, handle: Any) -> dict[str, Any]:
    """Drive the load."""

    async def call(number: int) -> bytes:
        result: bytes = await handle.remote(number)
        return result

    return await drive(work, call)


def main() -> None:
    """Start Ray, deploy, ask, stop."""
    work = Work.of_environment()
    # A worker's "GPU" is not a core: as many fit as there are to be.
    ray.init(num_cpus=2 * len(work.speeds) + 2, include_dashboard=False, logging_level=logging.ERROR)
    try:
        kind = batching(work) if work.batches else DrawNothing if work.costs_nothing else Draw
        deployment = serve.deployment(
            num_replicas=len(work.speeds),
            max_ongoing_requests=BATCHES_A_REPLICA * work.max_batch_size if work.batches else 64,
            health_check_period_s=1,
            ray_actor_options={"num_cpus": 1},
        )(kind)
        handle = serve.run(deployment.bind(), route_prefix=None)
        tell(asyncio.run(ask(work, handle)))
    finally:
        ray.shutdown()  # and Serve's processes with it


if __name__ == "__main__":
    main()
