"""Endpoints and addresses."""

import pytest

from imagegen_protocol.endpoints import Endpoint, is_loopback, parse_address, parse_bind_endpoint, parse_endpoint


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("tcp://127.0.0.1:5555", Endpoint("127.0.0.1", 5555)),
        ("tcp://gpu-host.example:1", Endpoint("gpu-host.example", 1)),
        ("tcp://a_b:65535", Endpoint("a_b", 65535)),
        ("tcp://[::1]:5555", Endpoint("::1", 5555)),
        ("tcp://[fe80::1%eth0]:5555", Endpoint("fe80::1%eth0", 5555)),
        ("ipc:///run/imagegen.sock", Endpoint(path="/run/imagegen.sock")),
        ("ipc://@abstract", Endpoint(path="@abstract")),
    ],
)
def test_an_endpoint_to_connect_to(text, parsed):
    assert parse_endpoint(text) == parse_bind_endpoint(text) == parsed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "tcp://host:port"),
        ("127.0.0.1:5555", "tcp://host:port"),
        ("http://127.0.0.1:5555", "tcp://host:port"),
        ("tcp://127.0.0.1", "tcp://host:port"),
        ("tcp://-a:5555", "tcp://host:port"),
        ("tcp://a b:5555", "tcp://host:port"),
        ("tcp://a:5555 ", "tcp://host:port"),
        ("tcp://a:5555/path", "tcp://host:port"),
        ("tcp://a:٣", "tcp://host:port"),
        ("tcp://a:65536", "65535"),
        ("ipc://", "ipc://path"),
        ("ipc:///run/a b", "ipc://path"),
        ("ipc:///run/" + "x" * 120, "107 bytes"),
    ],
)
@pytest.mark.parametrize("parse", [parse_endpoint, parse_bind_endpoint])
def test_a_wrong_endpoint_is_rejected(parse, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("tcp://*:5555", "tcp://host:port"), ("tcp://a:*", "tcp://host:port"), ("tcp://a:0", "1 ... 65535")],
)
def test_a_wildcard_can_be_bound_and_not_connected_to(text, message):
    parse_bind_endpoint(text)
    with pytest.raises(ValueError, match=message):
        parse_endpoint(text)


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("tcp://127.0.0.1:0", True),
        ("tcp://[::1]:5555", True),
        ("tcp://localhost:1", True),
        ("ipc:///run/x", True),
        ("tcp://*:5555", False),
        ("tcp://0.0.0.0:5555", False),
        ("tcp://eth0:5555", False),
    ],
)
def test_local_endpoints(text, local):
    assert parse_bind_endpoint(text).is_local is local


def test_addresses():
    assert parse_address("[::1]:80") == ("::1", 80)
    assert parse_address("host:0") == ("host", 0)
    for text in ("host:port", ":80", "host", "host:65536", "host:²"):
        with pytest.raises(ValueError, match="looks like") as caught:
            parse_address(text)
        assert repr(text) in str(caught.value)


def test_loopback():
    assert is_loopback("127.1.2.3")
    assert is_loopback("[::1]")
    assert not is_loopback("10.0.0.1")
    assert not is_loopback("example.org")
