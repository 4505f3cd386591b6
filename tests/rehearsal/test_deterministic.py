"""`--deterministic` on a GPU sets torch's flags."""

import os

import pytest
import torch

from tests.integration.models.worker import make_images

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def restored_flags(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    for flags, name in (
        (torch.backends.cudnn, "benchmark"),
        (torch.backends.cudnn, "deterministic"),
        (torch.utils.deterministic, "fill_uninitialized_memory"),
    ):
        monkeypatch.setattr(flags, name, getattr(flags, name))
    yield
    torch.use_deterministic_algorithms(False)


def test_deterministic_on_a_gpu_sets_the_flags_of_torch(card, model_folder, restored_flags):
    torch.backends.cudnn.benchmark = True
    make_images(model_folder("sd"), {}, device="cuda", dtype="float32", deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
