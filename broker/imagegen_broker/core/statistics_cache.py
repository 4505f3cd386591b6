"""`StatisticsCache`: the statistics for clients, computed at most twice a second."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable

from imagegen_broker.core.events import Payload, SendToClient
from imagegen_protocol.limits import DEFAULT_INLINE_BYTES, ID_BYTES
from imagegen_protocol.messages import Stats

MAX_AGE_SECONDS = 0.5
_KEPT = 8
"""Older statistics that clients may still be fetching."""


class StatisticsCache:
    """The latest encoded statistics, and earlier ones that clients fetch in chunks."""

    def __init__(self, compute: Callable[[float], bytes]) -> None:
        """`compute` returns the encoded statistics at a time."""
        self._compute = compute
        self._computed_at: float | None = None
        self._serial = 0
        self._payloads: OrderedDict[bytes, bytes] = OrderedDict()
        """By payload id; the latest is the last."""

    def answer(self, client_id: bytes, query_id: bytes, now: float) -> SendToClient:
        """Return the message that answers a query."""
        if self._computed_at is None or now - self._computed_at > MAX_AGE_SECONDS:
            self._computed_at = now
            self._serial += 1
            payload_id = hashlib.blake2b(self._serial.to_bytes(8, "big"), digest_size=ID_BYTES).digest()
            self._payloads[payload_id] = self._compute(now)
            if len(self._payloads) > _KEPT:
                self._payloads.popitem(last=False)
        payload_id, encoded = next(reversed(self._payloads.items()))
        if len(encoded) <= DEFAULT_INLINE_BYTES:
            return SendToClient(client_id, Stats(request_id=query_id), [encoded])
        return SendToClient(
            client_id, Stats(request_id=query_id, payload_id=payload_id, frame_bytes=[len(encoded)])
        )

    def payload(self, payload_id: bytes) -> Payload | None:
        """Return the payload with this id, None if there is none."""
        encoded = self._payloads.get(payload_id)
        return None if encoded is None else [encoded]
