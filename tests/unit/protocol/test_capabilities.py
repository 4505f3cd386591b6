"""The capabilities frame of READY: its size limit, and decoding of partly invalid frames."""

import msgpack
import msgspec

from imagegen_protocol.capabilities import ModelCapabilities, decode_capabilities, encode_capabilities
from imagegen_protocol.limits import MAX_BODY_BYTES

CAPABILITIES = ModelCapabilities(
    width=512,
    height=768,
    num_inference_steps=20,
    guidance_scale=7.5,
    size_multiple=8,
    max_side=2048,
    negative_prompt=True,
    tasks={"text-to-image": None, "image-to-image": 0.8},
    schedulers=["DDIMScheduler", "EulerDiscreteScheduler"],
    loras=["ink"],
)


def test_encoded_capabilities_decode_to_the_same():
    assert decode_capabilities(encode_capabilities({"a": CAPABILITIES, "b": CAPABILITIES})) == {
        "a": CAPABILITIES,
        "b": CAPABILITIES,
    }


def test_unknown_keys_are_ignored_and_absent_ones_have_defaults():
    told = {"a": {"width": 8, "height": 8, "num_inference_steps": 1, "tasks": {"text-to-image": None}, "new": [1]}}
    read = decode_capabilities(msgpack.packb(told))["a"]
    assert (read.guidance_scale, read.size_multiple, read.loras) == (None, 1, None)


def test_only_models_with_invalid_capabilities_are_omitted():
    good = msgspec.to_builtins(CAPABILITIES)
    bad = [{}, 7, {**good, "width": 0}, {**good, "schedulers": ["\n"]}, {**good, "tasks": {"video": None}}]
    told = {"good": good, **{f"bad {index}": each for index, each in enumerate(bad)}}
    assert decode_capabilities(msgpack.packb(told)) == {"good": CAPABILITIES}


def test_invalid_frames_decode_to_no_models():
    for frame in (b"", b"\xc1", b"\x93\x01\x02\x03", b"\x81" * 100_000, b"a" * (MAX_BODY_BYTES + 1)):
        assert decode_capabilities(frame) == {}


def test_models_beyond_the_size_limit_are_omitted():
    many = ModelCapabilities(
        width=8, height=8, num_inference_steps=1, tasks={}, loras=[f"{index:0>128}" for index in range(128)]
    )
    frame = encode_capabilities({f"{index:0>128}": many for index in range(256)})
    assert MAX_BODY_BYTES * 0.9 < len(frame) <= MAX_BODY_BYTES
    assert 10 < len(decode_capabilities(frame)) < 256
