"""Jobs whose workers' answers are invalid or state odd delays."""

import asyncio
from contextlib import asynccontextmanager, contextmanager

import pytest

from imagegen_client import GenerationResult, OverloadedError, Progress
from imagegen_gateway.client_pool import InFlightCounter
from imagegen_gateway.core.job_limits import InputQueue, JobQuota
from imagegen_gateway.database import open_database
from imagegen_gateway.image_store import ImageStore
from imagegen_gateway.jobs import runner
from imagegen_gateway.jobs.inputs import JobInputs
from imagegen_gateway.jobs.runner import JobRunner
from imagegen_gateway.jobs.store import JobStore
from imagegen_gateway.metrics import Metrics
from imagegen_protocol.messages import ImageInfo, Result


class Request:
    """A request that ends in one outcome: an error or a result."""

    request_id = "id"

    def __init__(self, outcome):
        self._outcome = outcome

    async def progress(self):
        yield Progress(0, 0, state="queued", seconds_to_start=float("nan"))

    async def result(self):
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def cancel(self):
        pass


class Fleet:
    """A client pool whose requests end in given outcomes, in order."""

    def __init__(self, *outcomes):
        self._outcomes = list(outcomes)
        self.submitted = []

    @contextmanager
    def client(self, key_id):
        yield self

    def submit(self, prompt, **options):
        self.submitted.append(options)
        return Request(self._outcomes.pop(0))


def result(*formats):
    """Return the answer of a worker with one image of each format."""
    images = [ImageInfo(format=each, width=8, height=8, seed=1) for each in formats]
    header = Result(request_id=16 * b"i", worker="w", model="m", images=images)
    return GenerationResult(header, [b"image" for _ in formats], 1.0)


@asynccontextmanager
async def running(folder, fleet):
    """Open a job runner for this fleet."""
    async with open_database(folder) as database:
        store, images = JobStore(database, 3600), ImageStore(str(folder / "results"), database)
        quota = JobQuota(max_jobs=10, max_jobs_per_key=10, max_bytes_per_key=10**6)
        inputs = JobInputs(images, InputQueue(per_key=10, total=20))
        jobs = JobRunner(store, images, inputs, fleet, quota, InFlightCounter(), Metrics(), lambda: None)
        yield jobs, store, images, quota
        await jobs.close()


async def add_job(store, *inputs):
    """Store a job."""
    return await store.add(
        owner="alice",
        prompt="x",
        options={"seed": 1},
        inputs=dict.fromkeys(inputs, 5),
        token="token",
        base_url="",
        fingerprint="",
        idempotency_key=None,
        webhook_url=None,
        now=0.0,
    )


async def run_job(folder, *outcomes, inputs=()):
    """Run a job to its end; return it and the options of its requests."""
    fleet = Fleet(*outcomes)
    async with running(folder, fleet) as (jobs, store, images, quota):
        for name in inputs:
            await images.write(f"token-{name}", b"12345")
        job = await add_job(store, *inputs)
        quota.add(job.owner, job.input_bytes)
        jobs.start(job)
        progress = jobs.progress(job.id)
        while not progress.finished:
            await progress.changed()
            assert progress.fields().get("seconds_to_start") is None, "JSON can't express this number"
        assert (jobs.unfinished, quota.jobs) == (0, 0)
        return await store.get(job.id), fleet.submitted


def test_a_job_ends_with_its_images(tmp_path):
    job, submitted = asyncio.run(run_job(tmp_path, result("png"), inputs=["image", "mask_image"]))
    assert (job.state, len(job.images)) == ("succeeded", 1)
    assert (submitted[0]["image"], submitted[0]["mask_image"]) == (b"12345", b"12345")
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["token-0.png"]


@pytest.mark.parametrize("formats", [["html"], [], ["png", "png"], ["x" * 10_000]])
def test_a_job_with_an_invalid_answer_fails(tmp_path, formats):
    job, submitted = asyncio.run(run_job(tmp_path, result(*formats)))
    assert (job.state, len(submitted)) == ("failed", 1)
    assert "the worker's answer is invalid" in job.error["message"]
    assert len(job.error["message"]) < 200
    assert list((tmp_path / "results").iterdir()) == []


def test_a_job_with_a_missing_input_fails(tmp_path):
    async def run():
        async with running(tmp_path, Fleet()) as (jobs, store, _, quota):
            job = await add_job(store, "image")
            quota.add(job.owner, job.input_bytes)
            jobs.start(job)
            progress = jobs.progress(job.id)
            while not progress.finished:
                await progress.changed()
            return await store.get(job.id)

    job = asyncio.run(run())
    assert (job.state, job.error["message"]) == ("failed", "the job's input image no longer exists")


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 1e300, -1.0])
def test_odd_delays_are_bounded(tmp_path, monkeypatch, seconds):
    waits = []

    async def sleep(wait, sleep=asyncio.sleep):
        waits.append(wait)
        await sleep(0)

    monkeypatch.setattr(runner.asyncio, "sleep", sleep)
    overloaded = OverloadedError("full", retry_after_seconds=seconds)
    job, submitted = asyncio.run(run_job(tmp_path, overloaded, result("png")))
    assert (job.state, len(submitted)) == ("succeeded", 2)
    assert waits == [1.0 if seconds < 0 else 300.0]
