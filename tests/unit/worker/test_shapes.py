"""Requests whose body contradicts the shape in their header are rejected."""

import pytest

from imagegen_protocol.costs import RequestShape
from imagegen_protocol.messages import Error
from imagegen_worker.core import events as ev
from tests.unit.worker.bench import MODEL, Bench, resolved


def answer(bench):
    [error] = bench.messages(Error)
    assert error.code == "invalid_request"
    return error.message


@pytest.mark.parametrize(
    ("body", "shape", "message"),
    [
        ({"width": 128}, {"width": 64}, "width: expected 64 as the request's header states, got 128"),
        ({"num_inference_steps": 3}, {}, None),
        ({}, {"width": 128}, "width: expected 128 as the request's header states, got 64"),
        ({}, {"height": 128}, "height: expected 128 as the request's header states, got 64"),
        (
            {},
            {"num_inference_steps": 9},
            "num_inference_steps: expected 9 as the request's header states, got 4",
        ),
        ({}, {"width": 64, "height": 64, "num_inference_steps": 4}, None),
        ({"num_inference_steps": 3}, {"num_inference_steps": 3}, None),
    ],
)
def test_a_body_of_another_shape_than_the_header_is_rejected(body, shape, message):
    bench = Bench()
    bench.work(1, body=body, shape=RequestShape(**shape))
    if message is None:
        assert not bench.messages(Error)
        assert bench.jobs
    else:
        assert answer(bench) == message
        assert not bench.jobs


def test_a_body_that_contradicts_its_header_is_rejected_before_its_model_is_loaded():
    bench = Bench(warm=False)
    bench.event(ev.EngineReady((MODEL,), "cpu", 0.5, served=("m", "later")))
    bench.beat(0)
    bench.work(1, body={"width": 64}, model="later", shape=RequestShape(width=128))
    assert "width" in answer(bench)
    assert not bench.loads


@pytest.mark.parametrize(("steps", "accepted"), [(2, True), (4, True), (3, False), (None, True)])
def test_an_image_to_image_request_may_state_its_steps_before_or_after_the_default_strength(steps, accepted):
    bench = Bench()
    shape = RequestShape(task="image-to-image", num_inference_steps=steps)
    bench.work(1, b"image", body={"inputs": ["image"]}, shape=shape)
    bench.event(ev.Decoded(bench.decoding.popitem()[0], resolved(task="image-to-image", strength=0.5)))
    if accepted:
        assert bench.jobs
    else:
        assert answer(bench) == "num_inference_steps: expected 3 as the request's header states, got 2"


def test_the_size_of_the_input_image_applies_without_a_size_in_the_body():
    bench = Bench()
    shape = RequestShape(task="image-to-image", width=128)
    bench.work(1, b"image", body={"inputs": ["image"]}, shape=shape)
    bench.event(ev.Decoded(bench.decoding.popitem()[0], resolved(task="image-to-image", strength=0.5, width=96)))
    assert answer(bench) == "width: expected 128 as the request's header states, got 96"
