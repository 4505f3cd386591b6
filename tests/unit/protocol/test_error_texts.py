"""Error messages state the field, the allowed values and the value, for any invalid value."""

import msgpack
import pytest

from imagegen_protocol import InvalidRequestError, ProtocolError, decode_from_client, parse_request
from imagegen_protocol.error_texts import MAX_SHOWN, format_value
from imagegen_protocol.frames import encode
from imagegen_protocol.limits import MAX_HEADER_BYTES, VERSION
from imagegen_protocol.messages import Error
from imagegen_protocol.request import make_request

SUBMIT = {"v": VERSION, "type": "submit", "request_id": b"x" * 16}


def with_key(fields, key, raw):
    """Return a map of these fields and one more, whose value is raw msgpack."""
    packed = b"".join(msgpack.packb(name) + msgpack.packb(value) for name, value in fields.items())
    return bytes([0x81 + len(fields)]) + packed + msgpack.packb(key) + raw


@pytest.mark.parametrize("prompt", ["", " ", "\n\t\u2003"])
def test_an_empty_prompt_is_rejected(prompt):
    with pytest.raises(InvalidRequestError, match=r"prompt: expected .* 1.*, got '"):
        make_request(prompt=prompt, seed=1)


@pytest.mark.parametrize("depth", [4, 900, 980, 1000, 1023, 1024, 100_000])
def test_a_body_of_any_depth_is_rejected_with_a_message(depth):
    body = with_key({"prompt": "a cat", "seed": 1}, "width", b"\x91" * depth + b"\x01")
    with pytest.raises(InvalidRequestError, match=r"width: expected `int \| null`, got `array`|not msgpack"):
        parse_request(body)


def test_a_number_of_any_length_is_rejected_with_a_message():
    with pytest.raises(InvalidRequestError, match=r"seed: expected `int` <= 9223372036854775807, got a value"):
        make_request(prompt="a cat", seed=10**5000)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"priority": 101}, "priority: expected `int` <= 100, got 101"),
        ({"timeout_seconds": "soon"}, "timeout_seconds: expected `float | null`, got `str`, got 'soon'"),
        ({"model": ""}, "model: expected `str` of length >= 1, got ''"),
        ({"request_id": b"short"}, "request_id: expected `bytes` of length >= 16, got b'short'"),
    ],
)
def test_an_invalid_header_field_is_named_with_its_value(fields, words):
    with pytest.raises(ProtocolError) as caught:
        decode_from_client(msgpack.packb({**SUBMIT, **fields}))
    assert caught.value.message == f"bad submit message: {words}"


@pytest.mark.parametrize(
    "rest",
    [b"\x81\x80\x01", b"\xa1\xff", b"\xd4\xff\x00", b"\x91" * 900 + b"\x01", b"\x81\x91\x80\x01"],
    ids=["a map as a key", "no UTF-8", "no time", "a deep list", "a list of maps as a key"],
)
def test_a_partly_readable_header_is_still_explained(rest):
    header = with_key({**SUBMIT, "priority": 101}, "of_a_later_version", rest)
    with pytest.raises(ProtocolError) as caught:
        decode_from_client(header)
    assert "priority: expected `int` <= 100" in caught.value.message or "not a message" in caught.value.message


def test_an_error_message_fits_into_a_header():
    with pytest.raises(ProtocolError) as caught:
        decode_from_client(msgpack.packb({"v": VERSION, "type": "x" * 65_000}))
    assert len(encode(Error(code="protocol_error", message=caught.value.message))) < MAX_HEADER_BYTES / 10


@pytest.mark.parametrize("value", ["x" * 10**6, b"x" * 10**6, list(range(10**5)), {n: n for n in range(999)}, 7])
def test_a_formatted_value_is_short(value):
    assert len(format_value(value)) <= MAX_SHOWN
