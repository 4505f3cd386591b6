"""Signatures of webhooks, as https://www.standardwebhooks.com defines them, and the delays between attempts."""

from datetime import UTC, datetime

from standardwebhooks import Webhook

PREFIX = "whsec_"


def signature_headers(secret: str, event_id: str, timestamp: int, body: str) -> dict[str, str]:
    """Return the headers of one delivery; `secret` is `whsec_` and base64, `timestamp` in seconds since 1970."""
    signature = Webhook(secret).sign(event_id, datetime.fromtimestamp(timestamp, UTC), body)
    return {"webhook-id": event_id, "webhook-timestamp": str(timestamp), "webhook-signature": signature}


def retry_delay(attempts: int, first: float, maximum: float = 3600.0) -> float:
    """Return the seconds to wait after `attempts` failed attempts (1 or more): four times as long each time."""
    return float(min(maximum, first * 4 ** min(attempts - 1, 20)))
