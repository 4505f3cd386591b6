"""Threads for request bodies."""

import asyncio
import threading

import pytest

from imagegen_gateway.request_threads import THREADS_PER_KEY, RequestThreads


class Blocked:
    """A function that waits until it is released, and counts its calls."""

    def __init__(self):
        self.released, self.running, self.most = threading.Event(), 0, 0
        self._lock = threading.Lock()
        self.begun = threading.Semaphore(0)

    def __call__(self):
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.begun.release()
        self.released.wait(60)
        with self._lock:
            self.running -= 1


def test_one_key_can_not_occupy_all_threads():
    async def run():
        threads, blocked = RequestThreads(), Blocked()
        tasks = [asyncio.create_task(threads.run("a", blocked)) for _ in range(10)]
        for _ in range(THREADS_PER_KEY):
            await asyncio.to_thread(blocked.begun.acquire)
        assert await threads.run("b", lambda: 7) == 7, "another key has a thread"
        assert not any(task.done() for task in tasks)
        blocked.released.set()
        await asyncio.gather(*tasks)
        assert blocked.most == THREADS_PER_KEY
        threads.close()

    asyncio.run(run())


def test_a_cancelled_call_keeps_its_slot_until_it_ends():
    async def run():
        threads, blocked = RequestThreads(), Blocked()
        tasks = [asyncio.create_task(threads.run("a", blocked)) for _ in range(THREADS_PER_KEY)]
        for _ in tasks:
            await asyncio.to_thread(blocked.begun.acquire)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        later = asyncio.create_task(threads.run("a", lambda: 7))
        await threads.run("b", lambda: None)
        assert not later.done()
        blocked.released.set()
        assert await later == 7
        threads.close()

    asyncio.run(run())


def test_exceptions_are_raised_in_the_caller():
    async def run():
        threads = RequestThreads()
        with pytest.raises(ZeroDivisionError):
            await threads.run("a", lambda: 1 // 0)
        threads.close()

    asyncio.run(run())
