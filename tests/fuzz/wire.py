"""Targets of what comes over ZeroMQ: headers, bodies, capabilities, statistics and endpoints."""

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from imagegen_broker.core.capabilities import merge
from imagegen_client.fleet import BrokerStatus, FleetSnapshot, as_json
from imagegen_gateway.core.limits import UNLIMITED
from imagegen_gateway.core.parameters import parameters
from imagegen_protocol import InvalidRequestError, ProtocolError
from imagegen_protocol.capabilities import decode_capabilities, encode_capabilities
from imagegen_protocol.endpoints import parse_address, parse_bind_endpoint, parse_endpoint
from imagegen_protocol.frames import decode_broker_to_client, encode
from imagegen_protocol.limits import MAX_HEADER_BYTES
from imagegen_protocol.messages import Error, Message
from imagegen_protocol.request import encode_request, parse_request
from imagegen_protocol.statistics import from_json, from_msgpack, to_json, to_msgpack


def header(decode: Callable[[bytes], Message], data: bytes) -> None:
    """Decode a header: it is rejected with an error that can be sent, or encodes to what it was."""
    try:
        message = decode(data)
    except ProtocolError as error:
        check_error(Error(code=error.code, message=error.message, request_id=error.request_id))
        return
    encoded = encode(message)
    assert len(encoded) <= MAX_HEADER_BYTES
    assert decode(encoded) == message
    repr(message)


def check_error(error: Error) -> None:
    """Raise an exception if the receiver of an error can't decode it."""
    assert decode_broker_to_client(encode(error)) == error


def request_body(data: bytes) -> None:
    """Parse the body of a request."""
    try:
        request = parse_request(data)
    except InvalidRequestError as error:
        check_error(Error(code=error.code, message=error.message))
        return
    assert parse_request(encode_request(request)) == request
    assert len(request.seeds()) == request.num_images


def capabilities(data: bytes) -> None:
    """Decode the capabilities of READY, merge them, and derive what HTTP shows of them."""
    models = decode_capabilities(data)
    for model in (*models.values(), *([merge(list(models.values()))] if models else ())):
        check_finite(parameters(model, UNLIMITED))
        assert msgspec.convert(msgspec.to_builtins(model), type(model)) == model
    for frame in encode_capabilities(models):
        assert decode_capabilities(frame).keys() <= models.keys()


def check_finite(value: Any) -> None:
    """Raise an exception for a value that JSON can't express."""
    json.dumps(value, allow_nan=False).encode()


def statistics_frame(data: bytes) -> None:
    """Decode the payload of STATS and the text of `/stats`."""
    for read, write in ((from_msgpack, to_msgpack), (from_json, to_json)):
        try:
            statistics = read(data)
        except ProtocolError:
            continue
        assert read(write(statistics)) == statistics
        snapshot = FleetSnapshot(1.0, (BrokerStatus("tcp://b:1", statistics),))
        check_finite(as_json(FleetSnapshot(0.5, snapshot.brokers), snapshot))


def endpoints(data: bytes) -> None:
    """Parse endpoints and the addresses of workers' metrics."""
    text = data.decode("utf-8", "surrogateescape")
    for parse in (parse_endpoint, parse_bind_endpoint):
        with suppress(ValueError):
            assert 0 <= parse(text).port <= 65_535
    try:
        _, port = parse_address(text)
    except ValueError:
        return
    assert 0 <= port <= 65_535
