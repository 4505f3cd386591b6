"""Asyncio client over real sockets."""

import asyncio
import gc
import logging
import threading
from contextlib import aclosing

import pytest

from imagegen_client import (
    AsyncClient,
    Client,
    ClientClosedError,
    GenerationFailedError,
)
from tests.integration.client.peers import PATIENCE


@pytest.fixture
def in_loop(broker, worker, caplog):
    """Run a coroutine function with a client in a loop of its own; nothing may be logged as an error."""
    wrong = []

    def run(function):
        async def body():
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: wrong.append(context))
            async with AsyncClient(broker.frontend_endpoint) as client:
                return await asyncio.wait_for(function(client), PATIENCE)

        return asyncio.run(body())

    yield run
    gc.collect()
    assert wrong == []
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_async_generate_stats_and_errors(in_loop):
    async def body(client):
        signs = []
        result = await client.generate("x", seed=3, on_progress=signs.append)
        assert result.seed == 3
        assert [sign.step for sign in signs][-2:] == [1, 2]
        with pytest.raises(GenerationFailedError):
            await client.generate("fail")
        (gpu,) = (await client.stats())["per_gpu_stats"]
        assert gpu["worker"] == "raw"
        together = await asyncio.gather(*(client.generate("x", seed=seed) for seed in range(100)))
        assert [result.seed for result in together] == list(range(100))

    in_loop(body)


def test_an_async_job_reports_progress_and_its_result_repeatedly(in_loop):
    async def body(client):
        job = client.submit("x", progress=True, seed=3)
        assert (job.seed, len(job.request_id)) == (3, 32)
        assert [sign.step async for sign in job.progress()][-2:] == [1, 2]
        assert [sign async for sign in job.progress()] == []
        assert await job.result() is await job.result()
        assert (job.done(), await job.exception(), job.cancel()) == (True, None, False)
        assert isinstance(await client.submit("fail").exception(), GenerationFailedError)
        with pytest.raises(ValueError, match="progress=True"):
            client.submit("x").progress()
        assert repr(job).startswith("<AsyncJob")

    in_loop(body)


def test_async_map(in_loop, worker):
    async def body(client):
        seen = [
            result.seed async for result in client.map(({"prompt": "x", "seed": at} for at in range(40)), window=5)
        ]
        assert seen == list(range(40))
        async with aclosing(client.map(["x", "hold", "hold"])) as results:
            async for _ in results:
                break
        with pytest.raises(GenerationFailedError):
            async for _ in client.map(["fail", "hold"]):
                pass
        with pytest.raises(ValueError, match="window"):
            client.map([], window=0)
        await asyncio.to_thread(worker.wait_for_idleness)

    in_loop(body)


@pytest.mark.parametrize("way", ["generate", "result", "progress", "map"])
def test_cancelling_the_task_cancels_the_request(in_loop, worker, way):
    async def body(client):
        job = client.submit("hold 1", progress=True)

        async def waiting():
            match way:
                case "generate":
                    await client.generate("hold 2", on_progress=lambda sign: None)
                case "result":
                    await client.submit("hold 2").result()
                case "progress":
                    async for _ in job.progress():
                        pass
                case "map":
                    async for _ in client.map(["hold 2", "hold 3"]):
                        pass

        task = asyncio.create_task(waiting())
        await asyncio.to_thread(worker.wait_for_work, 1 if way == "progress" else 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(worker.wait_until, lambda: len(worker._running) == 1, "cancelled")
        assert not job.done(), "following is not waiting for the answer"
        worker.let_go.set()
        assert (await job.result()).worker == "raw"

    in_loop(body)


def test_a_shielded_request_is_not_cancelled(in_loop, worker):
    async def body(client):
        job = client.submit("hold")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(job.result()), 0.01)
        assert len(job._job.future._done_callbacks) == 1
        worker.let_go.set()
        assert (await job.result()).worker == "raw"

    in_loop(body)


def test_an_unawaited_error_is_not_logged(in_loop, worker):
    async def body(client):
        jobs = [client.submit("fail") for _ in range(3)]
        task = asyncio.create_task(jobs[0].result())
        await asyncio.sleep(0)
        task.cancel()
        await client.generate("x")
        await asyncio.to_thread(worker.wait_for_idleness)
        await asyncio.gather(task, return_exceptions=True)

    in_loop(body)


def test_a_progress_consumer_may_stop_early(in_loop, worker):
    async def body(client):
        job = client.submit("hold", progress=True)
        async with aclosing(job.progress()) as events:
            async for _ in events:
                break
        assert job._job._callback is None
        dropped = client.submit("hold", progress=True)
        async for _ in dropped.progress():
            break
        await asyncio.sleep(0)  # the loop closes an unreferenced generator
        await asyncio.sleep(0)
        assert dropped._job._callback is None
        worker.let_go.set()
        assert (await job.result()).worker == (await dropped.result()).worker == "raw"

    in_loop(body)


def test_closing_the_loop_early_logs_no_error(broker, worker, caplog):
    loop = asyncio.new_event_loop()
    client = AsyncClient(broker.frontend_endpoint)

    async def begin():
        job = client.submit("hold", progress=True)
        signs = job.progress()
        await anext(signs)
        task = asyncio.create_task(job.result())
        await asyncio.sleep(0)
        return job, signs, task

    job, signs, task = loop.run_until_complete(begin())
    loop.close()
    worker.let_go.set()
    assert job._job.result(PATIENCE).worker == "raw"
    client._client.close()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    task._log_destroy_pending = False  # what this test itself left behind
    del signs


def test_closing_does_not_block_the_loop(broker, monkeypatch):
    async def body():
        client = AsyncClient(broker.frontend_endpoint)
        loop_lives = threading.Event()
        close = Client.close

        def slow(self):
            assert loop_lives.wait(PATIENCE), "the loop stood still"
            close(self)

        monkeypatch.setattr(Client, "close", slow)
        task = asyncio.create_task(client.close())
        await asyncio.sleep(0)
        loop_lives.set()
        await task
        with pytest.raises(ClientClosedError):
            client.submit("x")

    asyncio.run(body())


def test_submitting_needs_a_running_loop(broker):
    client = AsyncClient(broker.frontend_endpoint)
    with pytest.raises(RuntimeError, match="no running event loop"):
        client.submit("x")
    assert client._client._transport._core.unfinished == 0
    asyncio.run(client.close())
