"""The first images of a model decide which requests share a pipeline call."""

from dataclasses import replace

import pytest

from imagegen_worker.backends.diffusers import DiffusersBackend, StepwiseDiffusers
from imagegen_worker.backends.diffusers.batched_module import BatchedModule
from imagegen_worker.backends.diffusers.pipeline_batcher import PipelineBatcher
from imagegen_worker.config import LoadOptions, WorkerConfig

CONFIG = WorkerConfig()


@pytest.fixture
def warmed():
    """Return a function that loads and warms up the built-in model, for at most 2 images at a time."""
    opened = []

    def warm(**options):
        load_options = LoadOptions(device="cpu", threads=1, **options)
        place = CONFIG.model_source.location
        backend = StepwiseDiffusers(place, CONFIG.model_name, load_options, max_batch_size=2)
        opened.append(backend)
        backend.warm_up()
        return backend

    yield warm
    for backend in opened:
        backend.close()


def request(backend, **fields):
    row = backend._loaded.trial()
    return replace(row.request, **fields)


def test_requests_share_calls_and_rows_can_be_left_out(warmed):
    backend = warmed()
    assert backend.call_key(request(backend)) is not None
    assert backend.drops_rows(request(backend))


def test_a_request_with_another_scheduler_shares_no_call(warmed):
    backend = warmed()
    assert backend.call_key(request(backend, scheduler="EulerAncestralDiscreteScheduler")) is None


def test_a_static_backend_tries_another_scheduler_at_the_first_request():
    options = LoadOptions(device="cpu", threads=1)
    backend = DiffusersBackend(CONFIG.model_source.location, CONFIG.model_name, options, max_batch_size=2)
    backend.load()
    try:
        other = request(backend, scheduler="EulerAncestralDiscreteScheduler")
        assert not backend._sharing.was_tried(other)
        assert backend.call_key(other) is not None
        assert backend._sharing.was_tried(other)
    finally:
        backend.close()


def test_a_deterministic_worker_shares_no_calls(warmed):
    backend = warmed(deterministic=True)
    assert backend.call_key(request(backend)) is None


def test_a_pipeline_that_mixes_up_images_shares_no_calls(warmed, monkeypatch):
    made = PipelineBatcher.generate_all
    monkeypatch.setattr(PipelineBatcher, "generate_all", lambda *args, **how: made(*args, **how)[::-1])
    backend = warmed()
    assert backend.call_key(request(backend)) is None


def test_a_pipeline_that_takes_one_prompt_only_shares_no_calls(warmed, monkeypatch, caplog):
    made = PipelineBatcher.generate_all

    def picky(self, arguments, seeds, *args, **how):
        if len(seeds) > 1:
            raise TypeError("prompt: expected str")
        return made(self, arguments, seeds, *args, **how)

    monkeypatch.setattr(PipelineBatcher, "generate_all", picky)
    backend = warmed()
    assert backend.call_key(request(backend)) is None
    assert "prompt: expected str" in caplog.text


def test_rows_are_kept_where_leaving_them_out_changes_images(warmed, monkeypatch):
    without = BatchedModule._call_without_unwanted

    def wrong(self, call):
        output = without(self, call)
        return (-output[0],) if self.is_denoiser else output

    monkeypatch.setattr(BatchedModule, "_call_without_unwanted", wrong)
    backend = warmed()
    assert backend.call_key(request(backend)) is not None
    assert not backend.drops_rows(request(backend))
