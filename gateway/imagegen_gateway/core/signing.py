"""Signatures of webhooks, as https://www.standardwebhooks.com has them (and OpenAI's client checks them)."""

import base64
import hashlib
import hmac

PREFIX = "whsec_"


def signature_headers(secret: str, event_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers of one delivery; `secret` is `whsec_` and base64, `timestamp` in seconds since 1970."""
    key = base64.b64decode(secret.removeprefix(PREFIX))
    signed = f"{event_id}.{timestamp}.".encode() + body
    digest = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return {"webhook-id": event_id, "webhook-timestamp": str(timestamp), "webhook-signature": f"v1,{digest}"}


def retry_delay(attempts: int, first: float, most: float = 3600.0) -> float:
    """Return the seconds to wait after so many failed attempts (1 or more): four times as long each time."""
    return float(min(most, first * 4 ** min(attempts - 1, 20)))
