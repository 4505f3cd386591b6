"""The capabilities frame of READY: its size limit, and decoding of partly invalid frames."""

import msgpack
import msgspec

from imagegen_protocol.capabilities import (
    AcceptedParameter,
    ModelCapabilities,
    decode_capabilities,
    encode_capabilities,
)
from imagegen_protocol.limits import MAX_CAPABILITIES_BYTES, MAX_INLINE_BYTES

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
    models = {"a": CAPABILITIES, "b": CAPABILITIES}
    [frame] = encode_capabilities(models)
    assert decode_capabilities(frame) == models
    assert [decode_capabilities(frame) for frame in encode_capabilities({})] == [{}]


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
    for frame in (b"", b"\xc1", b"\x93\x01\x02\x03", b"\x81" * 100_000, b"a" * (MAX_INLINE_BYTES + 1)):
        assert decode_capabilities(frame) == {}


def test_models_beyond_the_size_limit_are_in_further_parts():
    models = {f"{index:0>128}": CAPABILITIES for index in range(256)}
    frames = encode_capabilities(models)
    assert 3 < len(frames) < 10
    assert max(map(len, frames)) <= MAX_CAPABILITIES_BYTES
    assert min(map(len, frames[:-1])) > 0.9 * MAX_CAPABILITIES_BYTES
    decoded = [decode_capabilities(frame) for frame in frames]
    assert sum(map(len, decoded)) == 256
    assert {name: model for part in decoded for name, model in part.items()} == models


def test_lists_of_a_model_that_exceed_the_size_limit_are_truncated():
    names = [f"{index:0>128}" for index in range(128)]
    many = msgspec.structs.replace(CAPABILITIES, loras=names, schedulers=names)
    choices = {name: AcceptedParameter(choices=names) for name in names}
    endless = msgspec.structs.replace(CAPABILITIES, parameters=choices)
    frames = encode_capabilities({"\U0001f600" * 128: many, "too long": endless, "a": CAPABILITIES})
    assert max(map(len, frames)) <= MAX_CAPABILITIES_BYTES
    decoded = {name: model for frame in frames for name, model in decode_capabilities(frame).items()}
    assert decoded.keys() == {"\U0001f600" * 128, "a"}
    shortened = decoded["\U0001f600" * 128]
    assert shortened.loras == shortened.schedulers == names[:32]
