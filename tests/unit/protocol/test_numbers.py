"""Every number in every message has a range, and numbers outside of it are rejected."""

import math
from collections.abc import Iterator
from typing import Any, get_args

import msgpack
import msgspec
import pytest
from msgspec import inspect

from imagegen_protocol import InvalidRequestError, ProtocolError, frames, messages
from imagegen_protocol.capabilities import ModelCapabilities, decode_capabilities
from imagegen_protocol.request import GenerationRequest, parse_request

ROLES = {
    frames.decode_from_client: messages.ClientMessage,
    frames.decode_from_worker: messages.WorkerMessage,
    frames.decode_broker_to_client: messages.BrokerToClient,
    frames.decode_broker_to_worker: messages.BrokerToWorker,
}
BODIES = (GenerationRequest, ModelCapabilities)
NON_FINITE = (math.nan, math.inf, -math.inf)
HUGE = (1e300, 2.0**63, 2**64 - 1, -(2**63), -1e300, 5e-324)

Path = tuple[str | int, ...]


def numbers(kind: inspect.Type, path: Path = ()) -> Iterator[tuple[Path, inspect.IntType | inspect.FloatType]]:
    """Yield the number types within a type, with their paths; a list has one item, a map one key."""
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        yield path, kind
    elif isinstance(kind, inspect.UnionType):
        for one in kind.types:
            yield from numbers(one, path)
    elif isinstance(kind, inspect.StructType):
        for field in kind.fields:
            yield from numbers(field.type, (*path, field.encode_name))
    elif isinstance(kind, inspect.ListType):
        yield from numbers(kind.item_type, (*path, 0))
    elif isinstance(kind, inspect.DictType):
        key = kind.key_type.values[0] if isinstance(kind.key_type, inspect.LiteralType) else "key"
        yield from numbers(kind.value_type, (*path, key))
    else:
        # Only `extra` may have any value; `check_extra_parameters` validates it.
        assert not isinstance(kind, inspect.AnyType) or path == ("extra", "key"), f"{path} accepts any value"


def example(kind: inspect.Type) -> Any:
    """Return a valid value of a type."""
    match kind:
        case inspect.StructType():
            tag = {} if kind.tag is None else {"type": kind.tag}
            return tag | {f.encode_name: example(f.type) for f in kind.fields if f.required or f.name == "v"}
        case inspect.IntType() | inspect.FloatType():
            return kind.ge if kind.ge is not None else kind.le
        case inspect.BytesType():
            return b"i" * (kind.min_length or 0)
        case inspect.StrType():
            return "s" * (kind.min_length or 1)
        case inspect.ListType():
            return [example(kind.item_type)] * (kind.min_length or 0)
        case inspect.DictType():
            return {}
        case inspect.LiteralType():
            return kind.values[0]
    raise AssertionError(f"no example of {kind}")


def put(value: Any, path: Path, number: Any, kind: inspect.Type) -> Any:
    """Return a copy of an example with a number at a path."""
    if not path:
        return number
    key, *rest = path
    if isinstance(kind, inspect.UnionType):
        wanted = inspect.ListType if key == 0 else inspect.DictType | inspect.StructType
        kind = next(one for one in kind.types if isinstance(one, wanted) and has_path(one, path))
    if isinstance(kind, inspect.ListType):
        return [put(example(kind.item_type) if rest else None, tuple(rest), number, kind.item_type)]
    if isinstance(kind, inspect.DictType):
        return {key: put(None, tuple(rest), number, kind.value_type)}
    field = next(field for field in kind.fields if field.encode_name == key)
    below = field.type
    base = example(below) if isinstance(below, inspect.StructType) else None
    return {**(value or example(kind)), key: put(base, tuple(rest), number, below)}


def has_path(kind: inspect.Type, path: Path) -> bool:
    return any(there == path for there, _ in numbers(kind))


CASES = [
    pytest.param(decode, member, path, kind, id=f"{decode.__name__}-{member.__name__}-{'.'.join(map(str, path))}")
    for decode, union in ROLES.items()
    for member in get_args(union)
    for path, kind in numbers(inspect.type_info(member))
]
BODY_CASES = [
    pytest.param(member, path, kind, id=f"{member.__name__}-{'.'.join(map(str, path))}")
    for member in BODIES
    for path, kind in numbers(inspect.type_info(member))
]


def outside(kind):
    """Yield numbers outside of the range of a type."""
    for value in (*NON_FINITE, *HUGE):
        if isinstance(kind, inspect.FloatType) or not isinstance(value, float):
            low = value < kind.ge if kind.ge is not None else value <= kind.gt
            if not math.isfinite(value) or low or value > kind.le:
                yield value
        else:
            yield value


def is_bounded(kind):
    low = kind.ge if kind.ge is not None else kind.gt
    most = 2**63 if isinstance(kind, inspect.IntType) else 1.7976931348623157e308
    return low is not None and kind.le is not None and -most <= low <= kind.le <= most


def test_each_direction_has_numbers():
    assert {case.values[0] for case in CASES} == set(ROLES)
    assert len(CASES) > 60


@pytest.mark.parametrize(("decode", "member", "path", "kind"), CASES)
def test_a_number_in_a_header_is_limited_to_its_range(decode, member, path, kind):
    assert is_bounded(kind), f"{member.__name__}.{path} has no range"
    info = inspect.type_info(member)
    siblings = [other for there, other in numbers(info) if there == path]
    decode(msgpack.packb(put(None, path, example(kind), info)))
    for value in outside(kind):
        if any(value not in list(outside(other)) for other in siblings):
            continue  # a union with another number type that accepts the value
        with pytest.raises(ProtocolError):
            decode(msgpack.packb(put(None, path, value, info)))


@pytest.mark.parametrize(("member", "path", "kind"), BODY_CASES)
def test_a_number_in_a_body_or_in_capabilities_is_limited_to_its_range(member, path, kind):
    assert is_bounded(kind), f"{member.__name__}.{path} has no range"
    info = inspect.type_info(member)
    siblings = [other for there, other in numbers(info) if there == path]
    for value in outside(kind):
        if any(value not in list(outside(other)) for other in siblings):
            continue  # a union with another number type that accepts the value
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(msgpack.packb(put(None, path, value, info)), type=member)


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**64 - 1, [math.nan], {"a": -math.inf}])
def test_extra_parameters_must_be_finite(value):
    with pytest.raises(InvalidRequestError, match="finite"):
        parse_request(msgpack.packb({"prompt": "p", "seed": 1, "extra": {"eta": value}}))


def test_capabilities_with_a_number_out_of_range_are_omitted():
    good = {"width": 8, "height": 8, "num_inference_steps": 1, "tasks": {"inpainting": 0.5}}
    bad = good | {"tasks": {"inpainting": math.inf}}
    assert list(decode_capabilities(msgpack.packb({"good": good, "bad": bad}))) == ["good"]
