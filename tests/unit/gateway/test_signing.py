"""Signatures, waits and partial images."""

import base64
import hashlib
import hmac

from imagegen_gateway.core.partial_images import PartialImageSelector
from imagegen_gateway.core.signing import retry_delay, signature_headers


def test_the_signature_is_that_of_standard_webhooks():
    secret = "whsec_" + base64.b64encode(b"k" * 32).decode()
    headers = signature_headers(secret, "evt_1", 1700000000, b'{"a":1}')
    digest = hmac.new(b"k" * 32, b'evt_1.1700000000.{"a":1}', hashlib.sha256).digest()
    assert headers == {
        "webhook-id": "evt_1",
        "webhook-timestamp": "1700000000",
        "webhook-signature": "v1," + base64.b64encode(digest).decode(),
    }


def test_waits_grow_to_an_hour():
    assert [retry_delay(attempts, 5) for attempts in range(1, 8)] == [5, 20, 80, 320, 1280, 3600, 3600]
    assert retry_delay(10**6, 5) == 3600


def picks(wanted, steps, seen):
    partials = PartialImageSelector(wanted)
    return [step for step in seen if partials.pick(step, steps) is not None]


def test_partial_images_are_spread_over_the_steps():
    assert picks(3, 20, range(21)) == [5, 10, 15]
    assert picks(1, 20, range(21)) == [10]
    assert picks(0, 20, range(21)) == []


def test_partial_images_are_numbered_and_never_more_than_asked_for():
    partials = PartialImageSelector(3)
    assert [partials.pick(step, 4) for step in (1, 1, 2, 3, 3, 4)] == [0, None, 1, 2, None, None]


def test_few_previews_give_few_partial_images():
    assert picks(3, 20, [19]) == [19]
    assert picks(3, 0, [0]) == []
