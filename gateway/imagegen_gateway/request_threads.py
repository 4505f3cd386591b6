"""Threads for work on request bodies, so that it neither blocks the event loop nor other keys."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 4
"""Number of threads."""
THREADS_PER_KEY = 1
"""Maximum number of threads that work for one key; all share the lock of the interpreter with the event loop."""


class KeySlots:
    """A semaphore for each key that has used one. They are never removed, because the operator limits the keys."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._semaphores: dict[str, asyncio.Semaphore] = {}

    def __getitem__(self, key_id: str) -> asyncio.Semaphore:
        return self._semaphores.setdefault(key_id, asyncio.Semaphore(self._slots))


class RequestThreads:
    """A pool of threads with a maximum for each key. It belongs to one event loop."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="request")
        self._slots = KeySlots(THREADS_PER_KEY)

    async def run(self, key_id: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread and return its result.

        A cancelled call ends in its thread, and keeps its slot until then.
        """
        slot = self._slots[key_id]
        await slot.acquire()
        try:
            running = self._executor.submit(function, *args, **kwargs)
        except BaseException:
            slot.release()
            raise
        future = asyncio.wrap_future(running)

        def on_end(ended: asyncio.Future[T]) -> None:
            slot.release()
            if not ended.cancelled():
                ended.exception()  # if the caller is cancelled, asyncio would log the error as never retrieved

        future.add_done_callback(on_end)
        return await asyncio.shield(future)

    def close(self) -> None:
        """Stop the threads once their running calls have ended."""
        self._executor.shutdown(wait=False, cancel_futures=True)
