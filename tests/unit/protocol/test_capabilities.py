"""What models take, told behind READY: bounded, and readable as far as it is right."""

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


def test_what_is_told_is_read():
    assert decode_capabilities(encode_capabilities({"a": CAPABILITIES, "b": CAPABILITIES})) == {
        "a": CAPABILITIES,
        "b": CAPABILITIES,
    }


def test_keys_that_are_not_known_are_passed_over_and_others_have_defaults():
    told = {"a": {"width": 8, "height": 8, "num_inference_steps": 1, "tasks": {"text-to-image": None}, "new": [1]}}
    read = decode_capabilities(msgpack.packb(told))["a"]
    assert (read.guidance_scale, read.size_multiple, read.loras) == (None, 1, None)


def test_a_model_of_which_it_can_not_be_read_is_left_out_alone():
    good = msgspec.to_builtins(CAPABILITIES)
    bad = [{}, 7, {**good, "width": 0}, {**good, "schedulers": ["\n"]}, {**good, "tasks": {"video": None}}]
    told = {"good": good, **{f"bad {index}": each for index, each in enumerate(bad)}}
    assert decode_capabilities(msgpack.packb(told)) == {"good": CAPABILITIES}


def test_whatever_comes_is_survived():
    for frame in (b"", b"\xc1", b"\x93\x01\x02\x03", b"\x81" * 100_000, b"a" * (MAX_BODY_BYTES + 1)):
        assert decode_capabilities(frame) == {}


def test_what_does_not_fit_is_left_out():
    many = ModelCapabilities(
        width=8, height=8, num_inference_steps=1, tasks={}, loras=[f"{index:0>128}" for index in range(128)]
    )
    frame = encode_capabilities({f"{index:0>128}": many for index in range(256)})
    assert MAX_BODY_BYTES * 0.9 < len(frame) <= MAX_BODY_BYTES
    assert 10 < len(decode_capabilities(frame)) < 256
