"""Errors of the fleet as HTTP has them."""

import pytest

import imagegen_protocol.errors as tree
from imagegen_gateway.errors import ErrorBody, from_imagegen_error
from imagegen_protocol import ImagegenError, InvalidRequestError, OverloadedError

KINDS = [kind for kind in vars(tree).values() if isinstance(kind, type) and issubclass(kind, ImagegenError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_an_answer(kind):
    error = from_imagegen_error(kind("because"))
    ErrorBody.model_validate(error.body())
    assert (error.code, error.message, 400 <= error.status < 600) == (kind.code, "because", True)


def test_the_fields_have_their_names_here():
    for theirs, ours in (
        ("num_images", "n"),
        ("width", "size"),
        ("quality", "output_compression"),
        ("seed", "seed"),
    ):
        error = from_imagegen_error(InvalidRequestError(f"{theirs}: expected something, got nothing"))
        assert (error.status, error.param) == (422, ours)
        assert error.message == f"{ours}: expected something, got nothing"
    assert from_imagegen_error(InvalidRequestError("no field: is named")).param is None


def test_the_broker_says_when_to_come_back():
    assert from_imagegen_error(OverloadedError("full", retry_after_seconds=2.3)).headers["Retry-After"] == "3"
    assert from_imagegen_error(OverloadedError("full")).headers["Retry-After"] == "1"
