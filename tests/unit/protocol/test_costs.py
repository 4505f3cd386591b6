"""The shape of a request in its header, and the cost model that workers report."""

import pytest

from imagegen_protocol import InvalidRequestError, decode_from_client, decode_from_worker, encode
from imagegen_protocol.costs import NO_SHAPE, CostModel, RequestShape, check_shape, shape_of
from imagegen_protocol.limits import MAX_LORAS, MAX_NAME_LENGTH
from imagegen_protocol.messages import Submit, WorkerHeartbeat
from imagegen_protocol.request import make_request

ID = b"i" * 16
COSTS = CostModel(forward_seconds=0.25, megapixel_seconds=0.5, request_seconds=2.0, decode_megapixel_seconds=4.0)


def request(**fields):
    return make_request(prompt="a", seed=1, **fields)


def test_a_header_without_a_shape_gets_an_empty_one():
    assert Submit(request_id=ID).shape == NO_SHAPE
    assert decode_from_client(encode(Submit(request_id=ID))).shape == NO_SHAPE


def test_a_shape_survives_the_wire():
    shape = RequestShape(
        width=8, height=8192, num_inference_steps=1000, task="inpainting", loras=["ü"] * MAX_LORAS
    )
    assert decode_from_client(encode(Submit(request_id=ID, shape=shape))).shape == shape


def test_a_report_with_costs_survives_the_wire():
    report = WorkerHeartbeat(session=1, costs={"m" * MAX_NAME_LENGTH: COSTS}, loaded_loras=["ink"])
    assert decode_from_worker(encode(report)) == report


@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        ({}, RequestShape()),
        ({"width": 640, "height": 320}, RequestShape(width=640, height=320)),
        ({"num_inference_steps": 30}, RequestShape(num_inference_steps=30)),
        ({"loras": [{"name": "b"}, {"name": "a", "scale": 0.5}]}, RequestShape(loras=["b", "a"])),
        ({"inputs": ["image"]}, RequestShape(task="image-to-image")),
        ({"inputs": ["image", "mask_image"]}, RequestShape(task="inpainting")),
        (
            {"inputs": ["image"], "num_inference_steps": 30, "strength": 0.55},
            RequestShape(task="image-to-image", num_inference_steps=16),
        ),
        (
            {"inputs": ["image"], "num_inference_steps": 2, "strength": 0.1},
            RequestShape(task="image-to-image", num_inference_steps=1),
        ),
        ({"inputs": ["image"], "strength": 0.5}, RequestShape(task="image-to-image")),
    ],
)
def test_a_shape_follows_from_the_body(fields, shape):
    assert shape_of(request(**fields)) == shape
    check_shape(shape, request(**fields))


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({"width": 64}, {"width": 128}, "width: expected 128 as the request's header states, got 64"),
        ({"height": 64}, {"width": 128}, "height: expected None as the request's header states, got 64"),
        ({"num_inference_steps": 30}, {"num_inference_steps": 3}, "num_inference_steps: expected 3 .* got 30"),
        ({}, {"task": "inpainting"}, "task: expected 'inpainting' .* got 'text-to-image'"),
        ({"inputs": ["image"]}, {"width": 8}, "task: expected 'text-to-image' .* got 'image-to-image'"),
        ({}, {"loras": ["ink"]}, r"loras: expected \['ink'\] .* got \[\]"),
        ({"loras": [{"name": "a"}]}, {"loras": ["b"]}, r"loras: expected \['b'\] .* got \['a'\]"),
    ],
)
def test_a_shape_that_contradicts_the_body_is_rejected(fields, shape, message):
    with pytest.raises(InvalidRequestError, match=message):
        check_shape(RequestShape(**shape), request(**fields))


def test_a_header_without_a_shape_fits_every_body():
    check_shape(NO_SHAPE, request(width=64, num_inference_steps=3, inputs=["image"], loras=[{"name": "a"}]))


def test_a_value_that_the_body_does_not_state_may_be_that_of_the_model():
    check_shape(RequestShape(width=64, height=64, num_inference_steps=3), request())


def test_a_forward_costs_a_fixed_time_and_a_time_per_image_and_megapixel():
    assert COSTS.forward(0.5, 4) == 0.25 + 0.5 * 0.5 * 4


def test_a_request_that_runs_alone_costs_its_forwards_its_fixed_time_and_decoding():
    assert COSTS.alone(0.5, 10, 2) == 2.0 + 10 * COSTS.forward(0.5, 2) + 4.0 * 0.5 * 2
