"""Webhook signatures, retry delays and the selection of partial images."""

import base64
import hashlib
import hmac
import time

import pytest

from imagegen_gateway.core.partial_images import PartialImageSelector
from imagegen_gateway.core.signing import retry_delay, signature_headers


@pytest.fixture(params=["UTC", "Asia/Tokyo"])
def timezone(request, monkeypatch):
    """The time zone of the process."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("timezone")
def test_the_signature_follows_standard_webhooks():
    secret = "whsec_" + base64.b64encode(b"k" * 32).decode()
    headers = signature_headers(secret, "evt_1", 1700000000, '{"a":1}')
    digest = hmac.new(b"k" * 32, b'evt_1.1700000000.{"a":1}', hashlib.sha256).digest()
    assert headers == {
        "webhook-id": "evt_1",
        "webhook-timestamp": "1700000000",
        "webhook-signature": "v1," + base64.b64encode(digest).decode(),
    }


def test_retry_delays_grow_up_to_an_hour():
    assert [retry_delay(attempts, 5) for attempts in range(1, 8)] == [5, 20, 80, 320, 1280, 3600, 3600]
    assert retry_delay(10**6, 5) == 3600


def selected(count, steps, previews):
    """Return the steps whose previews become partial images."""
    selector = PartialImageSelector(count)
    return [step for step in previews if selector.select(step, steps) is not None]


def test_partial_images_are_spread_over_the_steps():
    assert selected(3, 20, range(21)) == [5, 10, 15]
    assert selected(1, 20, range(21)) == [10]
    assert selected(0, 20, range(21)) == []


def test_partial_images_are_numbered_and_limited():
    selector = PartialImageSelector(3)
    assert [selector.select(step, 4) for step in (1, 1, 2, 3, 3, 4)] == [0, None, 1, 2, None, None]


def test_few_previews_result_in_few_partial_images():
    assert selected(3, 20, [19]) == [19]
    assert selected(3, 0, [0]) == []
