"""Which requests may share a pipeline call is found out by the first images of a model."""

from dataclasses import replace

import pytest

from imagegen_worker.backends.diffusers import DiffusersBackend, StepwiseDiffusers
from imagegen_worker.backends.diffusers.rendezvous import Rendezvous
from imagegen_worker.backends.diffusers.stages import ModuleStage
from imagegen_worker.config import LoadOptions, WorkerConfig

CONFIG = WorkerConfig()


@pytest.fixture
def warmed():
    """Return what loads and warms up the built-in model, for at most 2 images at a time."""
    opened = []

    def warm(**options):
        load_options = LoadOptions(device="cpu", threads=1, **options)
        place = CONFIG.model_source.place
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


def test_alike_requests_share_calls_and_rows_can_be_left_out(warmed):
    backend = warmed()
    assert backend.call_key(request(backend)) is not None
    assert backend.drops_rows(request(backend))


def test_a_scheduler_of_its_own_keeps_a_request_apart(warmed):
    backend = warmed()
    assert backend.call_key(request(backend, scheduler="EulerAncestralDiscreteScheduler")) is None


def test_a_static_backend_tries_another_scheduler_at_the_first_request_for_it():
    options = LoadOptions(device="cpu", threads=1)
    backend = DiffusersBackend(CONFIG.model_source.place, CONFIG.model_name, options, max_batch_size=2)
    backend.load()
    try:
        other = request(backend, scheduler="EulerAncestralDiscreteScheduler")
        assert not backend._sharing.was_tried(other)
        assert backend.call_key(other) is not None
        assert backend._sharing.was_tried(other)
    finally:
        backend.close()


def test_a_deterministic_worker_shares_none(warmed):
    backend = warmed(deterministic=True)
    assert backend.call_key(request(backend)) is None


def test_a_pipeline_that_mixes_its_images_up_shares_none(warmed, monkeypatch):
    made = Rendezvous.generate_all
    monkeypatch.setattr(Rendezvous, "generate_all", lambda *args, **how: made(*args, **how)[::-1])
    backend = warmed()
    assert backend.call_key(request(backend)) is None


def test_a_pipeline_that_takes_one_prompt_only_shares_none(warmed, monkeypatch, caplog):
    made = Rendezvous.generate_all

    def picky(self, arguments, seeds, *args, **how):
        if len(seeds) > 1:
            raise TypeError("prompt: expected str")
        return made(self, arguments, seeds, *args, **how)

    monkeypatch.setattr(Rendezvous, "generate_all", picky)
    backend = warmed()
    assert backend.call_key(request(backend)) is None
    assert "prompt: expected str" in caplog.text


def test_rows_stay_where_leaving_them_out_gives_another_image(warmed, monkeypatch):
    without = ModuleStage._meet_without_unwanted

    def wrong(self, call):
        output = without(self, call)
        return (-output[0],) if self.is_denoiser else output

    monkeypatch.setattr(ModuleStage, "_meet_without_unwanted", wrong)
    backend = warmed()
    assert backend.call_key(request(backend)) is not None
    assert not backend.drops_rows(request(backend))
