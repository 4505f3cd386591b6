"""Names of models in requests, and the default format of responses."""

import pytest

from imagegen_gateway.core.models import resolve_model, response_format

ALIASES = {"dall-e-3": "sdxl", "old": "gone"}
SERVED = ("sdxl", "flux")


@pytest.mark.parametrize(
    ("name", "strict", "lenient"),
    [
        (None, None, None),
        ("flux", "flux", "flux"),
        ("dall-e-3", "sdxl", "sdxl"),
        ("old", "gone", None),
        ("gpt-image-1", "gpt-image-1", None),
    ],
)
def test_aliases_apply_first_then_unknown_names_use_the_default_model(name, strict, lenient):
    assert resolve_model(name, ALIASES, SERVED, unknown_to_default=False) == strict
    assert resolve_model(name, ALIASES, SERVED, unknown_to_default=True) == lenient


def test_every_name_is_kept_while_the_served_models_are_unknown():
    assert resolve_model("gpt-image-1", ALIASES, None, unknown_to_default=True) == "gpt-image-1"


@pytest.mark.parametrize(
    ("stated", "model", "default", "expected"),
    [
        (None, None, "b64_json", "b64_json"),
        (None, "sdxl", "url", "url"),
        (None, "dall-e-2", "b64_json", "url"),
        ("b64_json", "dall-e-3", "url", "b64_json"),
        ("url", None, "b64_json", "url"),
    ],
)
def test_the_format_is_the_stated_one_or_that_of_the_model_or_the_default(stated, model, default, expected):
    assert response_format(stated, model, default) == expected
