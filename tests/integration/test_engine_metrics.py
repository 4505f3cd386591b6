"""What the continuous engine tells of real work: in `/metrics`, in heartbeats, and from there in `/stats`."""

import os

import msgpack
import msgspec
import pytest
import torch
from prometheus_client import generate_latest

from imagegen_worker.backends.diffusers.pipeline_batcher import PipelineBatcher
from imagegen_worker.config import WorkerConfig
from imagegen_worker.core import events as ev
from imagegen_worker.telemetry.metrics import Metrics
from tests.families import FAMILIES
from tests.integration.continuous.helpers import job, one_thread, rows_of, serve
from tests.integration.test_wire import dial
from tests.raw import ready
from tests.unit.worker.bench import Bench
from tests.unit.worker.test_metrics import Scrape

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
__all__ = ["dial", "one_thread"]


@pytest.fixture
def family():
    return FAMILIES["sdxl"]()


@pytest.fixture
def work(family):
    """Run jobs through the engine; return the core and the metrics that have heard what it told."""
    batcher = PipelineBatcher(family.pipeline)
    serve(batcher, family.arguments, [job(0, steps=1)])  # the denoiser is seen to keep no state

    def work(*jobs):
        posted, _ = serve(batcher, family.arguments, jobs)
        bench = Bench()
        metrics = Metrics(WorkerConfig(backend="simulated", name="w"))
        for event in posted:
            metrics.observe(event)
            bench.event(event)
        metrics.update(bench.core)
        return bench.core, Scrape(generate_latest(metrics.registry).decode()), posted

    yield work
    batcher.close()


def test_the_average_batch_is_of_images_that_shared_a_forward(work, start_broker, dial):
    core, got, _ = work(job(1, seeds=(1, 2)), job(2), job(3))
    assert got("rows_per_call_sum") == 2 * 8, "guidance makes two rows of one image"
    broker = start_broker()
    worker, client = dial(broker.backend_endpoint), dial(broker.frontend_endpoint)
    ready(worker, stats=msgspec.to_builtins(core.counters.to_stats()))
    client.send({"type": "stats", "request_id": os.urandom(16)})
    (gpu,) = msgpack.unpackb(client.receive("stats")[1][0])["per_gpu_stats"]
    assert gpu["total_batches"] == 2
    assert gpu["avg_batch_size"] == 4.0


def test_without_guidance_a_row_is_an_image(work):
    core, got, _ = work(job(1, guidance=1.0), job(2, guidance=1.0))
    assert got("rows_per_call_sum") == 2 * 2
    assert core.counters.to_stats().total_batched_requests / core.counters.to_stats().total_batches == 2.0


def test_forwards_waits_and_busy_seconds(work):
    _, got, posted = work(job(1, steps=4), job(2, steps=2))
    assert got("calls_total", outcome="done") == got("step_seconds_count") == 4
    assert got("first_step_wait_seconds_count") == 2
    assert got("images_total") == 2
    assert 0 < got("beside_seconds_total") < got("busy_seconds_total")
    assert got("busy_seconds_total") == pytest.approx(got("step_seconds_sum") + got("beside_seconds_total"))
    assert isinstance(posted[-1], ev.Idle)


def test_fallbacks_and_splits_are_counted(work, family):
    unet = family.pipeline.unet
    forward = unet.forward.stage._forward

    def small(*args, **kwargs):
        if rows_of(args, kwargs) > 2:
            raise torch.OutOfMemoryError("two rows at most")
        return forward(*args, **kwargs)

    unet.forward.stage._forward = small
    _, got, _ = work(job(1), job(2), job(3))
    assert got("calls_total", outcome="out_of_memory_split") >= 1
    assert got("images_total") == 3

    def refusing(*args, **kwargs):
        if rows_of(args, kwargs) > 2:
            raise ValueError("no company")
        return forward(*args, **kwargs)

    unet.forward.stage._forward = refusing
    _, got, _ = work(job(1, steps=3, prompt="one"), job(2, steps=3, prompt="two"))
    assert got("fallbacks_total", reason="error") >= 2
