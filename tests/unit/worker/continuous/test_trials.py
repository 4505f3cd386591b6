"""The trial images of a model before READY: those that only collect evidence may fail."""

import types

import pytest

torch = pytest.importorskip("torch")

from imagegen_worker.backends import DeviceLostError, DeviceMemoryError, StartError  # noqa: E402
from imagegen_worker.backends.diffusers import StepwiseDiffusers, stepwise  # noqa: E402
from imagegen_worker.config import LoadOptions  # noqa: E402
from imagegen_worker.engines.continuous.timing import WallTimer  # noqa: E402


@pytest.fixture
def backend(tmp_path):
    """A backend whose pipeline accepts exactly two steps, like SANA-Sprint, and otherwise raises `error`."""
    made = StepwiseDiffusers(tmp_path, "strict", LoadOptions(device="cpu"), max_batch_size=2)
    made.error = ValueError("`num_inference_steps` must be 2")
    made.prompts = []

    def trial(steps=None, seed=0, **fields):
        return types.SimpleNamespace(steps=steps, **fields)

    def generate(rows, on_step):
        if rows[0].steps != 2:
            raise made.error
        made.prompts.append(getattr(rows[0], "prompt", None))
        return ["image"]

    made._loaded = types.SimpleNamespace(trial=trial, model=types.SimpleNamespace(guidance_scale=4.0))
    made._pipeline_batcher = types.SimpleNamespace(timer=WallTimer())
    made.generate = generate
    return made


def test_a_model_that_rejects_the_values_of_a_trial_starts(backend, caplog):
    backend._try_different_arguments()
    assert "must be 2" in caplog.text
    assert backend.prompts == ["a"]


def test_a_trial_without_enough_memory_frees_it(backend, monkeypatch):
    freed = []
    monkeypatch.setattr(stepwise, "free_device_memory", lambda: freed.append(True))
    backend.error = DeviceMemoryError("out of memory")
    backend._try_different_arguments()
    assert freed


def test_a_device_that_is_lost_in_a_trial_ends_the_worker(backend):
    backend.error = DeviceLostError("lost")
    rows = [backend._loaded.trial(3)]
    for run in (
        backend._try_different_arguments,
        lambda: backend._run_call(rows),
        lambda: backend._run_apart(rows),
    ):
        with pytest.raises(DeviceLostError):
            run()


def test_first_images_that_fail_end_the_start(backend):
    with pytest.raises(StartError, match="must be 2"):
        backend._run_apart([backend._loaded.trial(3)])
