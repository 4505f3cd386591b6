"""Unfinished requests and statistics queries: when each one is sent, sent again, or ended without an answer."""

import hashlib
import logging
from collections.abc import Iterator
from math import inf

import msgspec

from imagegen_client.events import Action, LogEvent, Send
from imagegen_client.link import Link
from imagegen_client.payloads import Payloads
from imagegen_client.pending import Pending
from imagegen_client.timers import Timers
from imagegen_protocol import (
    BrokerUnreachableError,
    CancelledError,
    DeadlineExceededError,
    ImagegenError,
)
from imagegen_protocol.limits import DEFAULT_INLINE_BYTES, ID_BYTES
from imagegen_protocol.messages import Cancel, StatsQuery, Submit
from imagegen_protocol.transfers import sizes_of


class PendingTable:
    """Pending requests and queries by key and by wire id, with the next due time of each."""

    def __init__(self, link: Link, payloads: Payloads, connect_timeout: float) -> None:
        self._link = link
        self._payloads = payloads
        self._connect_timeout = connect_timeout
        self.by_key: dict[bytes, Pending] = {}
        self.by_id: dict[bytes, Pending] = {}
        self.timers = Timers()

    def add(self, entry: Pending) -> None:
        """Add an entry. Raises `ValueError` if its key is in use."""
        if entry.key in self.by_key:
            raise ValueError(f"the request id {entry.key.hex()} is already in use")
        self.by_key[entry.key] = self.by_id[entry.id] = entry

    def remove(self, entry: Pending) -> None:
        """Remove an entry that has ended."""
        self._payloads.stop(entry)
        del self.by_key[entry.key]
        del self.by_id[entry.id]
        self.timers.set(entry.key, None)

    def mark_accepted(self, request_id: bytes) -> Pending | None:
        """Record that the broker has accepted a request; return the request, None if it is unknown."""
        entry = self.by_id.get(request_id)
        # After a CANCEL only the answer to it counts: an ACCEPTED may have been under way.
        if entry is not None and entry.sent_at is not None and entry.cancel_deadline is None:
            entry.accepted = True
            self.schedule(entry)
        return entry

    def mark_unsent(self) -> None:
        """Record that a new connection was opened, on which nothing has been sent."""
        for entry in self.by_key.values():
            entry.sent_at, entry.accepted = None, False
            self.schedule(entry)

    def retry_later(self, entry: Pending, seconds: float, now: float) -> bool:
        """Give a rejected request a new id and a retry time; return False if its timeout comes first.

        The delay is `seconds` plus up to 100 % jitter, derived from the new id: the first id is random.
        """
        salt = (entry.retries + 1).to_bytes(hashlib.blake2b.SALT_SIZE, "big")
        new_id = hashlib.blake2b(entry.key, digest_size=ID_BYTES, salt=salt).digest()
        retry_at = now + seconds * (1 + int.from_bytes(new_id[:4], "big") / 2**32)
        if retry_at >= entry.created_at + entry.timeout:
            return False
        self._payloads.stop(entry)
        del self.by_id[entry.id]
        entry.id, entry.retry_at, entry.retries = new_id, retry_at, entry.retries + 1
        entry.sent_at, entry.accepted = None, False
        self.by_id[new_id] = entry
        self.schedule(entry)
        return True

    # ---- sending -----------------------------------------------------------------------------------------

    def transmit_all(self, now: float) -> list[Action]:
        """Send everything except requests that wait for a retry."""
        waiting = [entry for entry in self.by_key.values() if entry.retry_at is None]
        return [action for entry in waiting for action in self.transmit(entry, now)]

    def transmit(self, entry: Pending, now: float) -> list[Action]:
        """Send an entry, or its CANCEL, if the connection is established and its timeout is not over."""
        actions: list[Action] = []
        # Rounding must not exceed the requested timeout, which may be the maximum allowed.
        left = min(entry.timeout, entry.created_at + entry.timeout - now)
        entry.sent_at, entry.accepted = None, False
        if self._link.is_established and (left > 0 or entry.cancel_deadline is not None):
            entry.sent_at, entry.ever_sent = now, True
            if entry.cancel_deadline is not None:
                actions.append(Send(Cancel(request_id=entry.id)))
            elif isinstance(entry.message, StatsQuery):
                actions.append(Send(entry.message))
            else:
                fields = {"request_id": entry.id.hex(), "broker": self._link.endpoint}
                actions += [
                    LogEvent(logging.DEBUG, "request sent", fields),
                    self._submit(entry, entry.message, left),
                ]
        self.schedule(entry)
        return actions

    def _submit(self, entry: Pending, message: Submit, left: float) -> Send:
        """Return the SUBMIT of a request that has `left` seconds; the broker fetches a large payload."""
        fetched = sum(map(len, entry.payload)) > DEFAULT_INLINE_BYTES
        message = msgspec.structs.replace(
            message,
            request_id=entry.id,
            timeout_seconds=None if left == inf else left,
            inline_bytes=self._payloads.inline_bytes,
            frame_bytes=sizes_of(entry.payload) if fetched else [],
        )
        return Send(message, () if fetched else entry.payload)

    # ---- time --------------------------------------------------------------------------------------------

    def pop_due(self, now: float) -> Iterator[Pending]:
        """Yield the entries whose due time has come; each must be scheduled again or removed."""
        for key in self.timers.pop_due(now):
            yield self.by_key[key]

    def schedule(self, entry: Pending) -> None:
        """Set the time at which the entry is due: to be ended, retried, or sent again."""
        unlimited = entry.timeout == inf and entry.cancel_deadline is None
        if entry.accepted and unlimited and self._link.ever_established:
            self.timers.set(entry.key, None)  # the common case, without computing the minimum
            return
        retry_at = inf if entry.retry_at is None else entry.retry_at
        earliest = min(self.end_at(entry), self.resend_at(entry), retry_at)
        self.timers.set(entry.key, None if earliest == inf else earliest)

    def resend_at(self, entry: Pending) -> float:
        """Return when an entry that the broker has not accepted is sent again."""
        if entry.sent_at is None or entry.accepted:
            return inf
        return entry.sent_at + 2 * self._link.interval

    def end_at(self, entry: Pending) -> float:
        """Return when an entry ends without an answer."""
        if entry.cancel_deadline is not None:
            return entry.cancel_deadline
        if isinstance(entry.message, StatsQuery):
            return entry.created_at + entry.timeout
        if self._link.ever_established:
            # One interval after the broker's own deadline: its error is more specific.
            return entry.created_at + entry.timeout + self._link.interval
        return entry.created_at + min(entry.timeout, self._connect_timeout)

    def end_error(self, entry: Pending) -> ImagegenError:
        """Return the error in which an entry ends without an answer."""
        if entry.cancel_deadline is not None:
            return CancelledError("cancelled; the broker has not confirmed it")
        if entry.download is not None:
            arrived = f"{entry.download.received} of {entry.download.total} bytes of the answer have arrived"
            kind = DeadlineExceededError if isinstance(entry.message, Submit) else BrokerUnreachableError
            return kind(f"{arrived} within {entry.timeout:.3g} s")
        if isinstance(entry.message, Submit) and self._link.ever_established:
            return DeadlineExceededError(f"no result within {entry.timeout:g} s, and no error from the broker")
        waited = self.end_at(entry) - entry.created_at
        tried = " or ".join(self._link.endpoints)
        return BrokerUnreachableError(
            f"no broker answered at {tried} within {waited:.3g} s", suspicions=self._link.failures
        )
