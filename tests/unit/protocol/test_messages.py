"""Round trips of headers, bodies and errors, and the messages for invalid ones."""

import contextlib
import re

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen_protocol import (
    ImagegenError,
    InvalidRequestError,
    ProtocolError,
    RequestError,
    UnsupportedVersionError,
    decode_broker_to_client,
    decode_broker_to_worker,
    decode_from_client,
    decode_from_worker,
    encode,
    encode_request,
    error_from_wire,
    errors,
    parse_request,
)
from imagegen_protocol.images import sniff_format
from imagegen_protocol.limits import VERSION
from imagegen_protocol.messages import Fetch, Ready, Submit
from imagegen_protocol.request import check_frames, make_request

ID = b"i" * 16
DECODERS = (decode_from_client, decode_from_worker, decode_broker_to_client, decode_broker_to_worker)


def header(**fields):
    return msgpack.packb({"v": VERSION, **fields})


def test_another_msgpack_library_reads_an_encoded_header():
    plain = msgpack.unpackb(encode(Submit(request_id=ID, model="m", timeout_seconds=2.5)))
    assert plain["type"] == "submit"
    assert plain["v"] == VERSION
    assert plain["request_id"] == ID
    assert plain["timeout_seconds"] == 2.5


def test_a_header_of_another_msgpack_library_is_decoded():
    message = decode_from_client(header(type="submit", request_id=ID, timeout_seconds=3, unknown=[1, {"a": 2}]))
    assert message == Submit(request_id=ID, timeout_seconds=3.0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"type": "submit"}, "missing required field `request_id`"),
        ({"type": "submit", "request_id": b"short"}, "length >= 16"),
        ({"type": "submit", "request_id": "i" * 16}, "expected `bytes`"),
        ({"type": "submit", "request_id": ID, "priority": 101}, "priority: "),
        ({"type": "submit", "request_id": ID, "timeout_seconds": 0}, "timeout_seconds: "),
        ({"type": "submit", "request_id": ID, "timeout_seconds": float("nan")}, "timeout_seconds: "),
        ({"type": "submit", "request_id": ID, "model": "bad\nname"}, "model: "),
        ({"type": "submit", "request_id": ID, "model": "name\n"}, "model: "),
        ({"type": "ack", "request_ids": [ID] * 1025}, "length <= 1024"),
        ({"type": "dance"}, "'dance'"),
        ({"type": 7}, "bad untyped message"),
    ],
)
def test_an_invalid_header_is_rejected_with_the_field(fields, words):
    with pytest.raises(ProtocolError) as caught:
        decode_from_client(header(**fields))
    assert words in str(caught.value)


READY = {
    "type": "ready", "worker_id": ID, "name": "w", "host": "h", "gpu_id": 0, "device": "cpu", "backend": "b",
    "models": ["m"], "capacity": 1, "max_batch_size": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("decode", "fields", "words"),
    [
        (decode_from_worker, {"type": "submit", "request_id": ID}, "clients connect to its frontend"),
        (decode_from_worker, {"type": "stats"}, "clients connect to its frontend"),
        (decode_from_client, READY, "workers connect to its backend"),
    ],
)
def test_a_message_of_the_other_role_is_rejected_with_the_right_endpoint(decode, fields, words):
    with pytest.raises(ProtocolError, match=words):
        decode(header(**fields))


def test_the_error_of_an_invalid_submit_has_its_request_id():
    with pytest.raises(ProtocolError) as caught:
        decode_from_client(header(type="submit", request_id=ID, priority="high"))
    assert caught.value.request_id == ID


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("version", [0, 1, 3, -1, "2", 2.0, True, None, b"2", [2], 2**64 - 1])
def test_another_version_is_rejected(decode, version):
    shown = "none" if version is None else re.escape(repr(version))
    with pytest.raises(UnsupportedVersionError, match=f"has {shown}$"):
        decode(msgpack.packb({"type": "error", "code": "c", "message": "m", "v": version}))


@pytest.mark.parametrize("decode", DECODERS)
def test_the_version_is_required(decode):
    message = {"type": "fetch", "request_id": ID, "payload_id": ID, "offset": 0, "length": 1}
    assert decode(header(**message)) == Fetch(request_id=ID, payload_id=ID, offset=0, length=1)
    with pytest.raises(UnsupportedVersionError, match="has none") as caught:
        decode(msgpack.packb(message))
    assert caught.value.request_id == ID


def test_a_worker_must_serve_a_model():
    with pytest.raises(ProtocolError, match="models"):
        decode_from_worker(
            header(
                type="ready", worker_id=ID, name="w", host="h", gpu_id=0, device="cpu", backend="b", models=[],
                capacity=1, max_batch_size=1,
            )
        )  # fmt: skip
    assert Ready.__struct_config__.tag == "ready"


@pytest.mark.parametrize("address", ["nowhere", "host:", "host:123456", "a b:1", "http://host:1/metrics", ":80"])
def test_the_metrics_address_of_a_worker_is_host_and_port(address):
    with pytest.raises(ProtocolError, match="http"):
        decode_from_worker(
            header(
                type="ready", worker_id=ID, name="w", host="h", gpu_id=0, device="cpu", backend="b", models=["m"],
                capacity=1, max_batch_size=1, http=address,
            )
        )  # fmt: skip


@pytest.mark.parametrize("decode", DECODERS)
@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ).map(msgpack.packb)
)
def test_decoding_any_bytes_raises_only_protocol_errors(decode, data):
    with contextlib.suppress(ProtocolError):
        decode(data)


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize(
    "data", [b"\x91" * 60_000, b"\x81\xa1a" * 20_000, b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
)
def test_deep_nesting_and_huge_announced_lengths_are_rejected(decode, data):
    with pytest.raises(ProtocolError):
        decode(data)


# ---- bodies ------------------------------------------------------------------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
)
VALUES = SCALARS | st.lists(SCALARS, max_size=5) | st.dictionaries(st.sampled_from(["a", "b"]), SCALARS)
REQUESTS = st.fixed_dictionaries(
    {"prompt": st.text(max_size=50).filter(str.strip), "seed": st.integers(0, 2**63 - 1)},
    optional={
        "negative_prompt": st.none() | st.text(max_size=20),
        "num_inference_steps": st.integers(1, 1000),
        "guidance_scale": st.floats(0, 100) | st.integers(0, 100),
        "width": st.integers(8, 8192),
        "height": st.integers(8, 8192),
        "num_images": st.integers(1, 16),
        "scheduler": st.sampled_from([None, "DDIMScheduler"]),
        "output_format": st.sampled_from([None, "png", "jpeg", "webp"]),
        "extra": st.none() | st.dictionaries(st.sampled_from(["clip_skip", "sigmas", "_a1"]), VALUES),
    },
)


@given(REQUESTS)
def test_a_request_survives_a_round_trip(fields):
    request = make_request(**fields)
    assert parse_request(encode_request(request)) == request
    assert parse_request(msgpack.packb(fields)) == request


@given(st.binary(max_size=300))
def test_parsing_any_body_raises_only_invalid_request(body):
    with contextlib.suppress(InvalidRequestError):
        parse_request(body)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"seed": -1}, "seed: expected `int` >= 0, got -1"),
        ({"seed": 2**63}, "seed: "),
        ({"num_inference_steps": 0}, "num_inference_steps: expected `int` >= 1, got 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale: "),
        ({"guidance_scale": float("inf")}, "guidance_scale: "),
        ({"width": 7}, "width: expected `int` >= 8, got 7"),
        ({"width": True}, "width: "),
        ({"num_images": 17}, "num_images: expected `int` <= 16, got 17"),
        ({"prompt": None}, "prompt: "),
        ({"prompt": "x" * 10_001}, "prompt: expected `str` of length <= 10000"),
        ({"loras": "ink"}, "loras: expected `array | null`, got `str`"),
        ({"loras": [{"name": "a"}] * 9}, "loras: expected `array` of length <= 8"),
        ({"loras": [{"name": "a"}, {"name": "a", "scale": 2}]}, "loras: expected each name once, got a, a"),
        ({"loras": [{"scale": 1.0}]}, "loras: object missing required field `name`"),
        ({"loras": [{"name": "a", "path": "/"}]}, "loras: object contains unknown field `path`"),
        ({"loras": [{"name": "../a"}]}, "loras: expected `str` matching regex"),
        ({"loras": [{"name": "a/b"}]}, "loras: "),
        ({"loras": [{"name": "a\\b"}]}, "loras: "),
        ({"loras": [{"name": ".hidden"}]}, "loras: "),
        ({"loras": [{"name": "a\nb"}]}, "loras: "),
        ({"loras": [{"name": "a\n"}]}, "loras: "),
        ({"loras": [{"name": ""}]}, "loras: "),
        ({"loras": [{"name": "a", "scale": 10.5}]}, "loras: expected `float` <= 10.0"),
        ({"loras": [{"name": "a", "scale": float("nan")}]}, "loras: "),
        ({"inputs": "image"}, "inputs: expected `array | null`, got `str`"),
        ({"inputs": ["picture"]}, "inputs: expected image or mask_image, got ['picture']"),
        ({"inputs": ["image", "image"]}, "inputs: expected each name once, got image, image"),
        ({"inputs": ["image"] * 13}, "inputs: expected `array` of length <= 12"),
        ({"images": []}, "images: expected `array` of length >= 1"),
        ({"images": [None] * 11}, "images: expected `array` of length <= 10"),
        ({"images": [None, None], "inputs": ["images[0]"]}, "inputs: expected images[1] too, got ['images[0]']"),
        ({"inputs": ["images[0]"]}, "inputs: expected image or mask_image, got ['images[0]']"),
        ({"images": [None], "inputs": ["images[0]", "image"]}, "images: expected no image beside them"),
        ({"images": [None], "inputs": ["images[0]", "mask_image"]}, "images: expected no mask_image beside them"),
        ({"inputs": ["mask_image"]}, "inputs: expected an image with the mask_image, got mask_image alone"),
        ({"strength": 0.5}, "strength: expected only with an image, got 0.5 without one"),
        ({"inputs": ["image"], "strength": 0}, "strength: expected `float` > 0.0, got 0"),
        ({"inputs": ["image"], "strength": 1.01}, "strength: expected `float` <= 1.0, got 1.01"),
        ({"inputs": ["image"], "strength": float("nan")}, "strength: expected `float` > 0.0, got nan"),
        ({"scheduler": ""}, "scheduler: expected `str` matching regex"),
        ({"scheduler": "os.system"}, "scheduler: expected `str` matching regex"),
        ({"scheduler": "DDIMScheduler\n"}, "scheduler: "),
        ({"scheduler": "D" * 129}, "scheduler: expected `str` of length <= 128"),
        ({"output_format": "gif"}, "output_format: expected png or jpeg or webp, got 'gif'"),
        ({"output_format": 3}, "output_format: "),
        ({"output_format": "jpeg", "quality": 0}, "quality: expected `int` >= 1, got 0"),
        ({"output_format": "webp", "quality": 101}, "quality: expected `int` <= 100, got 101"),
        ({"quality": 80}, "quality: expected none for the output_format 'png' (jpeg and webp have one), got 80"),
        ({"extra": []}, "extra: expected `object | null`, got `array`"),
        ({"extra": {str(index): 1 for index in range(33)}}, "extra: expected at most 32 parameters, got 33"),
        ({"extra": {"a-b": 1}}, "extra: expected the name of a parameter"),
        ({"extra": {"é": 1}}, "extra: expected the name of a parameter"),
        ({"extra": {"width": 64}}, "extra: 'width' is a field of the request itself"),
        ({"extra": {"a": float("nan")}}, "extra: a: expected nil, a bool, an int of 64 bits, a finite float"),
        ({"extra": {"a": [1.0, float("-inf")]}}, "extra: a: expected nil, a bool"),
        ({"extra": {"a": {"b": float("inf")}}}, "extra: a: expected nil, a bool"),
        ({"extra": {"a": b"bytes"}}, "got b'bytes'"),
        ({"extra": {"a": [[1]]}}, "a flat list or map of those, got [1]"),
        ({"extra": {"a": {"b": {}}}}, "a flat list or map of those, got {}"),
        ({"extra": {"a": 2**63}}, "extra: a: expected nil, a bool, an int of 64 bits"),
        ({"extra": {"a": [0] * 1001}}, "extra: a: expected at most 1000 items, got 1001"),
        ({"extra": {"a": "x" * 16_384}}, "extra: expected at most 16384 bytes in total, got "),
        ({"colour": "red"}, "unknown field `colour`; known are prompt, seed"),
    ],
)
def test_an_invalid_field_is_named_with_its_value_and_range(fields, words):
    with pytest.raises(InvalidRequestError) as caught:
        parse_request(msgpack.packb({"prompt": "p", "seed": 1, **fields}))
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400


def test_deep_nesting_in_a_body_is_rejected():
    nested: object = 1
    for _ in range(900):
        nested = [nested]
    for fields in ({"extra": {"a": nested}}, {"negative_prompt": nested}, {"extra": nested}):
        with pytest.raises(InvalidRequestError, match=next(iter(fields))):
            make_request(prompt="p", seed=1, **fields)


@pytest.mark.parametrize(
    ("inputs", "frames", "words"),
    [
        (None, 1, "expected 0 image frames after the body, got 1"),
        (["image"], 0, r"expected 1 image frames \(image\) after the body, got 0"),
        (["image", "mask_image"], 1, r"expected 2 image frames \(image, mask_image\) after the body, got 1"),
        (["mask_image", "image"], 3, r"expected 2 image frames \(mask_image, image\) after the body, got 3"),
    ],
)
def test_a_wrong_number_of_frames_is_rejected(inputs, frames, words):
    request = make_request(prompt="p", seed=1, inputs=inputs)
    check_frames(request, len(inputs or []))
    with pytest.raises(InvalidRequestError, match=f"inputs: {words}"):
        check_frames(request, frames)


@pytest.mark.parametrize(
    ("data", "format_"),
    [
        (b"\x89PNG\r\n\x1a\n....", "png"),
        (b"\xff\xd8\xff\xe0", "jpeg"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "webp"),
        (b"RIFF\0\0\0\0WAVE", None),
        (b"GIF89a", None),
        (b"", None),
    ],
)
def test_formats_are_detected_by_their_first_bytes(data, format_):
    assert sniff_format(data) == format_
    assert sniff_format(memoryview(data)) == format_


@pytest.mark.parametrize("body", [b"", b"\x90", b"\x91" * 60_000, msgpack.packb({1: 2}), b"x" * 300_000])
def test_a_body_that_is_not_a_map_is_rejected(body):
    with pytest.raises(InvalidRequestError):
        parse_request(body)


def test_seeds_count_up_and_wrap():
    request = make_request(prompt="p", seed=2**63 - 1, num_images=3)
    assert request.seeds() == [2**63 - 1, 0, 1]


# ---- errors ------------------------------------------------------------------------------------------------


def test_each_code_has_its_own_exception_type():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ImagegenError)]
    made_by_clients_alone = {"broker_unreachable", "client_closed", "error", "request_error"}
    for kind in kinds:
        if kind.code in made_by_clients_alone:
            continue
        error = error_from_wire(kind.code, "why", 2.0)
        assert type(error) is kind
        assert (error.message, error.retry_after_seconds) == ("why", 2.0)


def test_an_unknown_code_is_a_request_error():
    error = error_from_wire("too_beautiful", "why")
    assert type(error) is RequestError
    assert "too_beautiful" in str(error)
