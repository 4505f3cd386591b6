"""Extra parameters can't set more denoising steps than `num_inference_steps` may."""

import pytest

from imagegen_protocol.errors import InvalidRequestError
from imagegen_protocol.limits import MAX_STEPS
from imagegen_worker.backends.diffusers.parameters import OWNED, read_signature
from imagegen_worker.core.capabilities import TaskCapabilities


class Pipeline:
    def __call__(
        self,
        prompt: str | list[str],
        num_inference_steps: int = 50,
        sigmas: list[float] | None = None,
        timesteps: list[int] | None = None,
        prior_timesteps: list[float] | None = None,
        prior_num_inference_steps: int = 25,
        clip_skip: int | None = None,
    ):
        pass


@pytest.fixture
def capabilities():
    signature = read_signature(Pipeline())
    return TaskCapabilities.of_call(signature.defaults, signature.extra, OWNED)


@pytest.mark.parametrize(
    ("name", "allowed", "rejected"),
    [
        ("sigmas", [0.5] * MAX_STEPS, [0.5] * (MAX_STEPS + 1)),
        ("timesteps", [5] * MAX_STEPS, [5] * (MAX_STEPS + 1)),
        ("prior_timesteps", [0.5], []),
        ("prior_num_inference_steps", MAX_STEPS, MAX_STEPS + 1),
        ("prior_num_inference_steps", 1, 0),
    ],
)
def test_extra_parameters_respect_the_limit_of_steps(capabilities, name, allowed, rejected):
    assert capabilities.convert_extra("model", {name: allowed}) == {name: allowed}
    with pytest.raises(InvalidRequestError, match=name):
        capabilities.convert_extra("model", {name: rejected})


def test_other_extra_parameters_have_no_such_limit(capabilities):
    assert capabilities.convert_extra("model", {"clip_skip": 5000}) == {"clip_skip": 5000}
    assert capabilities.convert_extra("model", {"sigmas": None}) == {"sigmas": None}
