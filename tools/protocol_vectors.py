"""Write `docs/protocol-vectors.json`: encoded messages, for the tests of other implementations.

python -m tools.protocol_vectors
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import msgpack
import msgspec

from imagegen_protocol import encode, encode_request, messages
from imagegen_protocol.costs import CostModel, RequestShape
from imagegen_protocol.limits import MAX_JSON_INTEGER, MAX_SEED, VERSION
from imagegen_protocol.request import make_request
from tools.protocol_schema import DIRECTIONS

PATH = Path(__file__).parents[1] / "docs/protocol-vectors.json"
CLIENT, TO_CLIENT, WORKER, TO_WORKER = DIRECTIONS
TO_BROKER, FROM_BROKER = (CLIENT, WORKER), (TO_CLIENT, TO_WORKER)

_ID, _PAYLOAD_ID, _EPOCH = (bytes(range(start, start + 16)) for start in (0x00, 0x10, 0x20))
_TOKEN = bytes(range(0x30, 0x38))
_BODY = encode_request(make_request(prompt="a red circle", seed=7))
_PNG = b"\x89PNG\r\n\x1a\n"
"""Stands for a file: receivers of the protocol do not read it."""
_TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_COSTS = CostModel(
    forward_seconds=0.035,
    megapixel_seconds=0.046,
    request_seconds=0.02,
    decode_megapixel_seconds=0.125,
    load_seconds=8.5,
    error=0.0625,
    samples=1500,
)
_IMAGE = messages.ImageInfo(format="png", width=512, height=384, seed=MAX_SEED)

_DESCRIPTION = """\
Messages of the imagegen protocol as bytes; protocol.md is normative. A value {"bin": "00ff"} is a bin in \
hexadecimal digits, and {"int": "9223372036854775807"} an int that JSON readers with doubles would round. \
`valid`: the header, the frames after it, and all keys after decoding, with the defaults of absent keys. Where \
`encoded` is true, our encoder writes these bytes; an encoder may order keys otherwise, and omit defaults. \
`invalid`: headers that a receiver rejects with the error code `error`, and the `request_id` that the ERROR \
repeats, or null."""


def _messages() -> Iterator[tuple[tuple[str, ...], messages.Message, tuple[bytes, ...]]]:
    """Yield an example of each message, with the directions in which it is sent and its further frames."""
    everywhere = (*TO_BROKER, *FROM_BROKER)
    m = messages
    yield everywhere, m.Fetch(request_id=_ID, payload_id=_ID, offset=65_536, length=16_384, token=_TOKEN), ()
    yield everywhere, m.Chunk(request_id=_ID, payload_id=_PAYLOAD_ID, offset=2**30 - 1, token=_TOKEN), (b"\xff",)
    yield (CLIENT,), _full_submit(), ()
    yield (CLIENT,), m.Submit(request_id=_ID), (_BODY,)
    yield (CLIENT,), m.Cancel(request_id=_ID), ()
    yield (CLIENT,), m.Ack(request_ids=[_ID, _PAYLOAD_ID], token=_TOKEN), ()
    yield (CLIENT,), m.ClientHeartbeat(token=_TOKEN, receive_maximum=16), ()
    yield (CLIENT,), m.StatsQuery(request_id=_ID), ()
    yield TO_BROKER, m.Goodbye(), ()
    yield (TO_CLIENT,), m.Accepted(request_ids=[_ID]), ()
    queued = m.Progress(request_id=_ID, state="queued", place=3, seconds_to_start=12.5)
    yield (TO_CLIENT,), queued, ()
    yield (TO_CLIENT,), m.Progress(request_id=_ID, step=5, steps=30, token=_TOKEN), (_PNG,)
    yield (WORKER,), m.Progress(request_id=_ID, attempt=2, step=5, steps=30), ()
    for directions in ((WORKER,), (TO_CLIENT,)):
        yield directions, _result(), (_PNG,)
        yield directions, msgspec.structs.replace(_result(), payload_id=_PAYLOAD_ID, frame_bytes=[2_000_000]), ()
    yield (WORKER,), m.Error(code="returned", message="the worker drains", request_id=_ID), ()
    yield (WORKER,), m.Error(code="invalid_request", message="width: too small", request_id=_ID, attempt=2), ()
    full = "the broker holds 10000 requests, which is the maximum"
    overloaded = m.Error(code="overloaded", message=full, request_id=_ID, retry_after_seconds=2.5)
    yield (TO_CLIENT,), overloaded, ()
    yield FROM_BROKER, m.Error(code="protocol_error", message="bad untyped message"), ()
    yield (TO_CLIENT,), _heartbeat(receive_maximum=1024), ()
    yield (TO_CLIENT,), m.Stats(request_id=_ID), (msgpack.packb({"num_gpus": 1}),)
    yield (TO_CLIENT,), m.Stats(request_id=_ID, payload_id=_PAYLOAD_ID, frame_bytes=[300_000]), ()
    yield (WORKER,), _ready(), (msgpack.packb({}),)
    yield (WORKER,), _worker_heartbeat(), ()
    yield (TO_WORKER,), _work(), (_BODY,)
    yield (TO_WORKER,), m.Work(request_id=_ID, model="sd", frame_bytes=[len(_BODY), 200_000]), ()
    yield (TO_WORKER,), m.Release(request_ids=[_ID]), ()
    yield (TO_WORKER,), m.Resend(request_ids=[_ID]), ()
    yield (TO_WORKER,), _heartbeat(beat=17), ()
    yield (TO_WORKER,), m.Drain(), ()


def _full_submit() -> messages.Submit:
    return messages.Submit(
        request_id=_ID,
        model="stable-diffusion-xl",
        priority=-5,
        timeout_seconds=90.5,
        progress=True,
        preview=True,
        traceparent=_TRACEPARENT,
        images=2,
        shape=RequestShape(
            width=1024, height=768, num_inference_steps=24, task="image-to-image", loras=["ink", "paper"]
        ),
        inline_bytes=65_536,
        frame_bytes=[len(_BODY), 1_500_000],
    )


def _result() -> messages.Result:
    return messages.Result(
        request_id=_ID,
        worker="gpu-0",
        model="sd",
        images=[_IMAGE],
        batch_size=4,
        queue_seconds=0.25,
        generation_seconds=3.5,
        encode_seconds=0.125,
        parameters={"task": "text-to-image", "seed": MAX_SEED, "guidance_scale": 7.5, "scheduler": None},
    )


def _heartbeat(**fields: Any) -> messages.BrokerHeartbeat:
    return messages.BrokerHeartbeat(epoch=_EPOCH, session=3, interval_seconds=1.0, liveness=3, **fields)


def _ready() -> messages.Ready:
    return messages.Ready(
        worker_id=_EPOCH,
        name="host-gpu0",
        host="host",
        gpu_id=0,
        device="NVIDIA L4",
        backend="diffusers",
        models=["sd", "sdxl"],
        capacity=8,
        max_batch_size=4,
        batching="continuous",
        pid=4242,
        http="[::1]:9101",
        warm=["sd"],
        costs={"sd": CostModel(forward_seconds=0.0, megapixel_seconds=0.25)},
    )


def _worker_heartbeat() -> messages.WorkerHeartbeat:
    return messages.WorkerHeartbeat(
        session=3,
        beat=17,
        queued=[_ID],
        running=[_PAYLOAD_ID],
        stats=messages.WorkerStats(total_requests=2**40, busy_seconds=12.5),
        seconds_per_image=0.75,
        step_age_seconds=0.25,
        token=_TOKEN,
        costs={"sd": _COSTS},
        loaded_loras=["ink"],
    )


def _work() -> messages.Work:
    return messages.Work(
        request_id=_ID,
        model="sd",
        attempt=3,
        timeout_seconds=60.0,
        progress=True,
        traceparent=_TRACEPARENT,
        alone=True,
        shape=RequestShape(width=512, num_inference_steps=1),
        inline_bytes=0,
    )


# ---- other encodings, and invalid headers ----------------------------------------------------------------


def _map(fields: Mapping[str, Any], raw: Mapping[str, bytes] | None = None) -> bytes:
    """Return a map of fields, and of others whose values are encoded already."""
    values = {"v": VERSION, **fields}
    parts = [msgpack.packb(key) + msgpack.packb(value) for key, value in values.items()]
    parts += [msgpack.packb(key) + value for key, value in (raw or {}).items()]
    return bytes([0x80 + len(parts)]) + b"".join(parts)


_SUBMIT = {"type": "submit", "request_id": _ID}
_FETCH = {"type": "fetch", "request_id": _ID, "payload_id": _ID}
_FULL_FETCH = {**_FETCH, "offset": 0, "length": 1}


def _foreign() -> Iterator[tuple[str, str, bytes]]:
    """Yield names, directions and headers in encodings that our encoder never chooses."""
    yield "only the required keys", CLIENT, _map(_SUBMIT)
    yield "keys in another order", CLIENT, msgpack.packb({"request_id": _ID, "v": VERSION, "type": "cancel"})
    yield "an unknown key", CLIENT, _map({**_SUBMIT, "of_a_later_version": [1, {"a": None}]})
    yield "an int in place of a float", CLIENT, _map({**_SUBMIT, "timeout_seconds": 30})
    yield "a float of 32 bits", CLIENT, _map(_SUBMIT, {"timeout_seconds": b"\xca" + struct.pack(">f", 0.5)})
    yield "nil where it is allowed", CLIENT, _map({**_SUBMIT, "model": None, "timeout_seconds": None})
    unsigned = {"offset": b"\xcf" + struct.pack(">Q", 0), "length": b"\xcd\x40\x00"}
    yield "unsigned ints of 64 and 16 bits", CLIENT, _map(_FETCH, unsigned)
    signed = {"offset": b"\xd3" + struct.pack(">q", 5), "length": b"\xd2\x00\x00\x40\x00"}
    yield "signed ints of 64 and 32 bits", CLIENT, _map(_FETCH, signed)
    yield "a version of 16 bits", CLIENT, b"\x82\xa4type\xa7goodbye\xa1v\xcd\x00" + bytes([VERSION])
    yield "a str with a length of 8 bits", CLIENT, b"\x82\xd9\x04type\xd9\x07goodbye\xa1v" + bytes([VERSION])
    yield (
        "a map with a length of 32 bits",
        CLIENT,
        b"\xdf\x00\x00\x00\x02\xa4type\xa7goodbye\xa1v" + bytes([VERSION]),
    )
    yield (
        "a bin with a length of 32 bits",
        CLIENT,
        _map({"type": "cancel"}, {"request_id": b"\xc6\0\0\0\x10" + _ID}),
    )
    ids = b"\xdc\x00\x01\xc5\x00\x10" + _ID
    yield "a list with a length of 16 bits", TO_CLIENT, _map({"type": "accepted"}, {"request_ids": ids})


_READY = {
    "type": "ready",
    "worker_id": _ID,
    "name": "w",
    "host": "h",
    "gpu_id": 0,
    "device": "cpu",
    "backend": "none",
    "models": ["m"],
    "capacity": 1,
    "max_batch_size": 1,
}
_RESULT = {"type": "result", "request_id": _ID, "worker": "w", "model": "m"}
_PIXEL = {"format": "png", "width": 1, "height": 1, "seed": 0}


def _versions() -> Iterator[tuple[str, str, bytes]]:
    """Yield names, directions and headers that are rejected with `unsupported_version`."""
    for direction in (*TO_BROKER, *FROM_BROKER):
        yield "no version", direction, msgpack.packb(_FULL_FETCH)
    for version in (1, 3, "2", 2.0, True, None):
        yield f"the version {json.dumps(version)}", CLIENT, msgpack.packb({**_SUBMIT, "v": version})


def _wrong_values() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield names, directions and fields of headers that are rejected with `protocol_error`."""
    yield "an unknown type", CLIENT, {**_SUBMIT, "type": "dance"}
    yield "a type of the other direction", CLIENT, {**_SUBMIT, "type": "work"}
    yield "no type", CLIENT, {"request_id": _ID}
    yield "a missing key", CLIENT, {"type": "submit"}
    yield "an id of 15 bytes", CLIENT, {**_SUBMIT, "request_id": _ID[:15]}
    yield "an id of 17 bytes", CLIENT, {**_SUBMIT, "request_id": _ID + b"\0"}
    yield "an id as a str", CLIENT, {**_SUBMIT, "request_id": "0123456789abcdef"}
    yield "a token of 17 bytes", CLIENT, {"type": "heartbeat", "token": b"\0" * 17}
    yield "nil where it is not allowed", CLIENT, {**_SUBMIT, "priority": None}
    yield "a float in place of an int", CLIENT, {**_SUBMIT, "priority": 1.5}
    yield "a whole float in place of an int", CLIENT, {**_SUBMIT, "priority": 1.0}
    yield "a str in place of an int", CLIENT, {**_SUBMIT, "priority": "1"}
    yield "a bool in place of an int", CLIENT, {**_SUBMIT, "priority": True}
    yield "an int in place of a bool", CLIENT, {**_SUBMIT, "progress": 1}
    yield "an int above its range", CLIENT, {**_SUBMIT, "priority": 101}
    yield "an int below its range", CLIENT, {**_FULL_FETCH, "offset": -1}
    yield "a length of 0", CLIENT, {**_FULL_FETCH, "length": 0}
    yield "too small chunks", CLIENT, {**_FULL_FETCH, "chunk_bytes": 4095}
    yield "a float of 0 where it must be greater", CLIENT, {**_SUBMIT, "timeout_seconds": 0}
    yield "NaN", CLIENT, {**_SUBMIT, "timeout_seconds": math.nan}
    yield "an infinite float", CLIENT, {**_SUBMIT, "timeout_seconds": math.inf}
    yield "an empty name", CLIENT, {**_SUBMIT, "model": ""}
    yield "a name with a line feed", CLIENT, {**_SUBMIT, "model": "a\n"}
    yield "a short traceparent", CLIENT, {**_SUBMIT, "traceparent": _TRACEPARENT[:-1]}
    yield "too many frames", CLIENT, {**_SUBMIT, "frame_bytes": [1] * 66}
    yield "a frame that is too long", CLIENT, {**_SUBMIT, "frame_bytes": [2**26 + 1]}
    yield "a width of 0", CLIENT, {**_SUBMIT, "shape": {"width": 0}}
    yield "1,001 steps", CLIENT, {**_SUBMIT, "shape": {"num_inference_steps": 1001}}
    yield "an unknown task", CLIENT, {**_SUBMIT, "shape": {"task": "text-to-video"}}
    yield "nil in place of a map", CLIENT, {**_SUBMIT, "shape": None}
    yield "nine LoRAs", CLIENT, {**_SUBMIT, "shape": {"loras": ["ink"] * 9}}
    yield "a worker without models", WORKER, {**_READY, "models": []}
    yield "a capacity of 1,025", WORKER, {**_READY, "capacity": 1025}
    yield "an address without a port", WORKER, {**_READY, "http": "host"}
    yield "an unknown state", WORKER, {"type": "heartbeat", "session": 1, "state": "asleep"}
    yield "an infinite speed", WORKER, {"type": "heartbeat", "session": 1, "seconds_per_image": math.inf}
    yield "a cost that is missing", WORKER, _report(costs={"m": {"forward_seconds": 1.0}})
    yield "a negative cost", WORKER, _report(costs={"m": {**_COST, "forward_seconds": -1.0}})
    yield "a cost of NaN", WORKER, _report(costs={"m": {**_COST, "decode_megapixel_seconds": math.nan}})
    yield "an infinite error", WORKER, _report(costs={"m": {**_COST, "error": math.inf}})
    yield "costs of 65 models", WORKER, _report(costs={f"m{number}": _COST for number in range(65)})
    yield "65 LoRAs", WORKER, _report(loaded_loras=["ink"] * 65)
    yield "a negative width", WORKER, {**_RESULT, "images": [{**_PIXEL, "width": -1}]}
    yield "a seed as a float", WORKER, {**_RESULT, "images": [{**_PIXEL, "seed": 7.5}]}
    yield "a seed of 2^63", WORKER, {**_RESULT, "images": [{**_PIXEL, "seed": 2**63}]}
    yield "an empty epoch", TO_CLIENT, _broker_heartbeat(epoch=b"")
    yield "an interval of 0", TO_CLIENT, _broker_heartbeat(interval_seconds=0)
    yield "a liveness of 0", TO_WORKER, _broker_heartbeat(liveness=0)


_COST = {"forward_seconds": 0.5, "megapixel_seconds": 0.5}


def _report(**fields: Any) -> dict[str, Any]:
    return {"type": "heartbeat", "session": 1, **fields}


def _broker_heartbeat(**fields: Any) -> dict[str, Any]:
    return {"type": "heartbeat", "epoch": _ID, "session": 1, "interval_seconds": 1, "liveness": 3, **fields}


def _malformed() -> Iterator[tuple[str, str, bytes]]:
    """Yield names, directions and headers that are no message at all."""
    good = _map(_SUBMIT)
    yield "an empty header", CLIENT, b""
    yield "no map", CLIENT, msgpack.packb([1, 2])
    yield "bytes after the map", CLIENT, good + b"\xc0"
    yield "a map that ends early", CLIENT, good[:-1]
    yield "a str that is not UTF-8", WORKER, _map({"type": "error", "code": "c"}, {"message": b"\xa1\xff"})
    yield "an announced length of 4 GiB", CLIENT, _map({"type": "cancel"}, {"request_id": b"\xc6\xff\xff\xff\xff"})


# ---- the file --------------------------------------------------------------------------------------------


def vectors() -> dict[str, Any]:
    """Return the contents of the file."""
    valid = [
        _valid(message.__class__.__name__, direction, encode(message), frames, encoded=True)
        for directions, message, frames in _messages()
        for direction in directions
    ]
    for name, direction, header in _foreign():
        frames = (_BODY,) if _decoded(header)["type"] == "submit" else ()
        valid.append(_valid(name, direction, header, frames, encoded=False))
    invalid = [_invalid(*case, "unsupported_version") for case in _versions()]
    for name, direction, fields in _wrong_values():
        invalid.append(_invalid(name, direction, msgpack.packb({"v": VERSION, **fields}), "protocol_error"))
    invalid += [_invalid(*case, "protocol_error") for case in _malformed()]
    return {"description": _DESCRIPTION, "version": VERSION, "valid": valid, "invalid": invalid}


def _valid(
    name: str, direction: str, header: bytes, frames: tuple[bytes, ...], *, encoded: bool
) -> dict[str, Any]:
    return {
        "name": name,
        "direction": direction,
        "encoded": encoded,
        "header": header.hex(),
        "frames": [frame.hex() for frame in frames],
        "fields": to_json(_with_defaults(direction, header)),
    }


def _invalid(name: str, direction: str, header: bytes, error: str) -> dict[str, Any]:
    request_id = _decoded(header).get("request_id")
    is_id = isinstance(request_id, bytes) and len(request_id) == len(_ID)
    shown = request_id.hex() if isinstance(request_id, bytes) and is_id else None
    return {"name": name, "direction": direction, "header": header.hex(), "error": error, "request_id": shown}


def _decoded(header: bytes) -> dict[str, Any]:
    """Return the fields of a header; empty if it is no message."""
    try:
        fields = msgpack.unpackb(header)
    except ValueError:  # the base of the errors of msgpack
        return {}
    return fields if isinstance(fields, dict) else {}


def _with_defaults(direction: str, header: bytes) -> dict[str, Any]:
    """Return the fields of a valid header, and the defaults of those that it lacks."""
    fields = _decoded(header)
    kinds = {kind.__struct_config__.tag: kind for kind in get_args(DIRECTIONS[direction])}
    kind = kinds[fields["type"]]
    defaults = {
        field.name: field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
        for field in msgspec.structs.fields(kind)
        if not field.required
    }
    return {key: _filled(fields, key, defaults.get(key)) for key in ("type", *kind.__struct_fields__)}


def _filled(fields: dict[str, Any], key: str, default: Any) -> Any:
    """Return the value of a key, or its default; keys that a map lacks get their defaults, too."""
    value = fields.get(key, default)
    if isinstance(value, dict) and isinstance(default, msgspec.Struct):
        return {**msgspec.structs.asdict(default), **value}
    return value


def to_json(value: Any) -> Any:
    """Return a value of msgpack in the notation of the file."""
    if isinstance(value, bytes):
        return {"bin": value.hex()}
    if isinstance(value, msgspec.Struct):
        return to_json(msgspec.structs.asdict(value))
    if isinstance(value, dict):
        return {key: to_json(each) for key, each in value.items()}
    if isinstance(value, list):
        return [to_json(each) for each in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_JSON_INTEGER:
        return {"int": str(value)}
    return value


def render() -> str:
    """Return the text of the file."""
    return json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the file."""
    PATH.write_text(render())


if __name__ == "__main__":
    main()
