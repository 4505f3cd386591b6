"""Serving on the device: pipeline calls that share forwards, and a worker's backends with a given pipeline."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from benchmarks.batching.contenders import Field, Schedule, contenders
from benchmarks.batching.traffic import Arrival
from benchmarks.gpu.models import GpuModel
from imagegen_protocol import GenerationRequest
from imagegen_worker.backends import completed
from imagegen_worker.backends.diffusers.pipeline_batcher import PipelineBatcher
from imagegen_worker.backends.factory import LoadedEngine
from imagegen_worker.config import LoadOptions, WorkerConfig
from imagegen_worker.engines.continuous.calls import Task
from imagegen_worker.engines.continuous.scheduler import BatchScheduler

Arguments = Mapping[str, Any]


def alone(pipeline: Any, arguments: Arguments, seed: int) -> Any:
    """Return the image of the unmodified pipeline, on the CPU."""
    return pipeline(**arguments, generator=torch.Generator("cpu").manual_seed(seed)).images[0].cpu()


def together(pipeline: Any, calls: Sequence[Arguments], arrivals: Sequence[int]) -> list[Any]:
    """Run these calls with shared forwards and their index as seed; return their images, on the CPU.

    `arrivals` has the number of forwards before each call, in ascending order. Raises whatever a call raises.
    """
    batcher = PipelineBatcher(pipeline)
    try:
        with batcher.session():
            _run(batcher, calls[:1], (0,))  # shows that the models keep no state: others share at once
            return _run(batcher, calls, arrivals)
    finally:
        batcher.close()


def _run(batcher: PipelineBatcher, calls: Sequence[Arguments], arrivals: Sequence[int]) -> list[Any]:
    scheduler = BatchScheduler(timer=batcher.timer)
    tasks: list[Task] = []
    tick, busy = 0, True
    while busy or len(tasks) < len(calls):
        while len(tasks) < len(calls) and arrivals[len(tasks)] <= tick:
            index = len(tasks)
            tasks.append(scheduler.start(partial(batcher.generate, calls[index], index)))
        busy = scheduler.step()
        tick += 1
    for task in tasks:
        if task.error is not None:
            raise task.error
    return [task.result.cpu() for task in tasks]


@contextmanager
def serving(
    pipeline: Any, model: GpuModel, folder: Path, *, rows: int | None = None, waits: Sequence[float] = ()
) -> Iterator[Field]:
    """Load a worker's backends with a pipeline that is on the device already, and warm them up.

    Both use the same models: called from outside of the engine, wrapped models run at once.
    """

    def load(place: Path, *_: object) -> tuple[Any, Path]:
        copy = type(pipeline)(**pipeline.components)
        copy.set_progress_bar_config(disable=True)
        return copy, place

    with (
        mock.patch("imagegen_worker.backends.diffusers.loaded.load_pipeline", load),
        contenders(
            model.defaults(folder / model.name),
            options=LoadOptions(device="cuda"),
            max_batch_size=rows or model.rows,
            waits=waits,
        ) as field,
    ):
        yield field


def worker_images(folder: Path, requests: Sequence[Mapping[str, Any]], **settings: Any) -> list[Any]:
    """Load a model as a worker does, serve requests that arrive at once, and close it; return the images."""
    images: dict[int, Any] = {}
    encoder: Any = SimpleNamespace(submit=lambda raw: images.update({raw.number: completed(raw.images[0])}))
    loaded = LoadedEngine(WorkerConfig(models=(str(folder),), torch_threads=1, **settings), encoder)
    about = loaded.ready.models[0]
    schedule = Schedule([Arrival(0.0, about.resolve(GenerationRequest(**each))) for each in requests], ())
    try:
        loaded.engine.run(schedule)
    finally:
        schedule.close()
        loaded.close()
    return [images[number] for number in range(len(requests))]
