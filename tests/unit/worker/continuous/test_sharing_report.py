"""The reason why requests of a model do not share forwards."""

import dataclasses
import types

import pytest

torch = pytest.importorskip("torch")

from imagegen_worker.backends.diffusers.layouts import describe, differing_names  # noqa: E402
from imagegen_worker.backends.diffusers.sharing_report import DenoiserForwards, why_unshared  # noqa: E402
from imagegen_worker.core.model import Model  # noqa: E402
from imagegen_worker.engines.continuous.scheduler import ForwardDone  # noqa: E402


def stage(**fields):
    defaults = {"name": "unet", "is_denoiser": True, "exclusive": False, "differing_arguments": frozenset()}
    return types.SimpleNamespace(**{**defaults, **fields})


def forwards(of, *groups, fallback=""):
    """Return forwards of these groups of tasks, for one image each."""
    made = DenoiserForwards()
    for group in groups:
        tasks = tuple(group)
        made.observe(ForwardDone(stage=of, tasks=tasks, rows=len(tasks), seconds=0.0, fallback=fallback))
    return made


TOGETHER, APART = ["ab", "ab"], ["a", "b", "a", "b"]


@pytest.mark.parametrize(
    ("of", "unlike", "alike", "fallback", "reason"),
    [
        (stage(), TOGETHER, TOGETHER, "", ""),
        (stage(), [], [], "", ""),
        (
            stage(differing_arguments=frozenset({"encoder_hidden_states"})),
            APART,
            TOGETHER,
            "",
            "only requests with prompts of equal length share a forward: calls differ in encoder_hidden_states",
        ),
        (
            stage(exclusive=True),
            APART,
            APART,
            "",
            "requests share no forward: calls change the model",
        ),
        (stage(), APART, APART, "opaque argument", "requests share no forward: unet: opaque argument"),
    ],
)
def test_the_reason_names_what_keeps_requests_apart(of, unlike, alike, fallback, reason):
    runs = {"unlike": forwards(of, *unlike, fallback=fallback), "alike": forwards(of, *alike, fallback=fallback)}
    found = why_unshared(lambda rows: runs[rows[0]], ["unlike"], ["alike"])
    assert found.startswith(reason)
    assert bool(found) == bool(reason)


def test_the_steps_that_one_request_has_more_are_no_reason():
    assert forwards(stage(), "ab", "ab", "a").are_shared


def test_encoders_do_not_count():
    assert forwards(stage(is_denoiser=False), "a", "b").are_shared


def test_the_names_of_arguments_that_differ():
    def layout(length):
        return describe({"x": torch.zeros(1, 4), "text": torch.zeros(1, length, 4)}).layout

    assert differing_names(layout(3), layout(5)) == {"text"}
    assert differing_names(layout(3), layout(3)) == frozenset()


def test_the_reason_is_reported_to_brokers():
    model = Model(name="m", num_inference_steps=2, guidance_scale=1.0, width=64, height=64)
    assert model.capabilities().unshared is None
    reported = dataclasses.replace(model, unshared="x" * 1000).capabilities().unshared
    assert reported == "x" * 256
