"""Limits on JSON from clients."""

import json

import pytest

from imagegen_gateway.core.json_bounds import (
    MAX_KEY,
    MAX_STRUCTURE,
    MAX_TEXT,
    MAX_VALUES,
    JsonError,
    JsonTooLargeError,
    parse_json,
)


@pytest.mark.parametrize("value", [None, True, 1.5, 2**62, 10**30, "ä", [], {"a": [{"b": "c"}]}, "," * MAX_TEXT])
def test_values_within_the_limits_are_returned(value):
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize("text", [b"", b"{", b'{"a": 1,}', b"[NaN]", b"[1e999]", b"\xff", b'"\xff"', b"1" * 5000])
def test_malformed_texts_are_rejected(text):
    with pytest.raises(JsonError):
        parse_json(text)


@pytest.mark.parametrize("depth", [5000, MAX_STRUCTURE - 1, 10**7])
def test_deeply_nested_texts_are_rejected(depth):
    with pytest.raises(JsonTooLargeError):
        parse_json(b"[" * depth + b"]" * depth)


def test_the_number_of_values_is_limited_at_any_depth():
    assert len(parse_json(json.dumps([1] * MAX_VALUES).encode())) == MAX_VALUES
    for value in ([1] * (MAX_VALUES + 1), {"a": {str(i): i for i in range(MAX_VALUES)}}, [[1] * 600, [1] * 600]):
        with pytest.raises(JsonTooLargeError, match=f"expected at most {MAX_VALUES} values"):
            parse_json(json.dumps(value).encode())


def test_a_text_with_millions_of_values_is_rejected_before_it_is_parsed(monkeypatch):
    monkeypatch.setattr("msgspec.json.decode", None)
    with pytest.raises(JsonTooLargeError):
        parse_json(b"[" + b"1," * 15_000_000 + b"1]")


def test_only_long_fields_may_have_long_texts():
    long = "x" * (MAX_TEXT + 1)
    assert parse_json(json.dumps({"image": long}).encode(), {"image"}) == {"image": long}
    for value in ({"prompt": long}, {"prompt": [{"image": long}]}):
        with pytest.raises(JsonTooLargeError, match=f"expected at most {MAX_TEXT} characters") as caught:
            parse_json(json.dumps(value).encode(), {"image"})
        assert caught.value.field == "prompt"


@pytest.mark.parametrize("value", [{"k" * (MAX_KEY + 1): 1}, [{"a": {"k" * (MAX_KEY + 1): 1}}]])
def test_long_names_are_rejected(value):
    with pytest.raises(JsonTooLargeError, match="field names of at most 256 characters"):
        parse_json(json.dumps(value).encode())
    assert parse_json(json.dumps({"k" * MAX_KEY: 1}).encode())
