"""Protection from other sites' pages while keys are off."""

from types import SimpleNamespace

import pytest
from starlette.requests import Request

from imagegen_gateway.access import _check_local
from imagegen_gateway.errors import ApiError

SERVICES = SimpleNamespace(settings=SimpleNamespace(public_url="https://images.example", cors_origins=()))


def request(**headers):
    return Request({"type": "http", "headers": [(name.encode(), text.encode()) for name, text in headers.items()]})


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "[::1]:8000", "images.example"])
def test_the_gateways_own_names_are_accepted(host):
    _check_local(request(host=host), SERVICES)
    _check_local(request(host=host, origin=f"http://{host}"), SERVICES)


@pytest.mark.parametrize("host", ["evil.example", "", "[", "[x]:1", "[::1", "localhost@evil.example"])
def test_another_or_an_invalid_host_is_rejected(host):
    with pytest.raises(ApiError) as caught:
        _check_local(request(host=host), SERVICES)
    assert (caught.value.status, caught.value.code) == (403, "foreign_host")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://[", "http://[x]"])
def test_another_or_an_invalid_origin_is_rejected(origin):
    with pytest.raises(ApiError) as caught:
        _check_local(request(host="localhost", origin=origin), SERVICES)
    assert (caught.value.status, caught.value.code) == (403, "foreign_origin")
