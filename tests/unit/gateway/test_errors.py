"""HTTP responses for errors of the fleet."""

import pytest
from fastapi.exceptions import RequestValidationError

import imagegen_protocol.errors as tree
from imagegen_gateway.errors import (
    MAX_MESSAGE,
    MAX_PARAM,
    ApiError,
    ErrorBody,
    from_imagegen_error,
    from_validation_error,
)
from imagegen_protocol import ImagegenError, InvalidRequestError, OverloadedError

KINDS = [kind for kind in vars(tree).values() if isinstance(kind, type) and issubclass(kind, ImagegenError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_of_the_fleet_has_a_response(kind):
    error = from_imagegen_error(kind("because"))
    ErrorBody.model_validate(error.body())
    assert (error.code, error.message, 400 <= error.status < 600) == (kind.code, "because", True)


def test_errors_name_the_fields_of_the_http_api():
    for wire_name, http_name in (
        ("num_images", "n"),
        ("width", "size"),
        ("quality", "output_compression"),
        ("seed", "seed"),
    ):
        error = from_imagegen_error(InvalidRequestError(f"{wire_name}: expected something, got nothing"))
        assert (error.status, error.param) == (400, http_name)
        assert error.message == f"{http_name}: expected something, got nothing"
    assert from_imagegen_error(InvalidRequestError("no field: is named")).param is None


def test_the_retry_delay_of_the_broker_is_the_retry_after_header():
    assert from_imagegen_error(OverloadedError("full", retry_after_seconds=2.3)).headers["Retry-After"] == "3"
    assert from_imagegen_error(OverloadedError("full")).headers["Retry-After"] == "1"


@pytest.mark.parametrize(
    ("seconds", "header"), [(float("nan"), "300"), (float("inf"), "300"), (1e300, "300"), (-5.0, "1"), (0.0, "1")]
)
def test_any_retry_delay_becomes_a_finite_one(seconds, header):
    error = from_imagegen_error(OverloadedError("full", retry_after_seconds=seconds))
    assert error.headers["Retry-After"] == header


def test_long_messages_and_field_names_are_shortened():
    error = ApiError(400, "invalid_value", "x" * 10**6, param="y" * 10**6)
    assert (len(error.message), len(error.param)) == (MAX_MESSAGE + 1, MAX_PARAM + 1)


@pytest.mark.parametrize(
    "value", ["x" * 10**7, b"x" * 10**7, list(range(10**6)), {str(i): i for i in range(10**5)}]
)
def test_long_values_are_shortened_in_messages(value):
    invalid = {"type": "string_type", "loc": ("body", "prompt"), "msg": "Input should be a string", "input": value}
    assert len(from_validation_error(RequestValidationError([invalid])).message) < 120
