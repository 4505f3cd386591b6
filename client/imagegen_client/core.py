"""Client side of the protocol, without sockets, clock, threads or randomness.

The core keeps every request until its terminal answer has arrived (`docs/protocol.md` §2). It decides what is
sent and sent again, when a broker counts as dead, and which endpoint is connected next. Requests are sent on a
connection only after the broker's first message on it: no request waits in the buffers of a socket without a
peer, and the remaining seconds of a timeout are computed when the request is really sent.
"""

import logging
from collections.abc import Sequence
from math import inf

from imagegen_client import events as ev
from imagegen_client.link import Link
from imagegen_client.pending import Pending, PendingTable
from imagegen_protocol import (
    CancelledError,
    ClientClosedError,
    ImagegenError,
    OverloadedError,
    ProtocolError,
    UnauthorizedError,
    UnsupportedVersionError,
    error_from_wire,
    messages,
)
from imagegen_protocol.limits import MAX_IDS_PER_MESSAGE


class ClientCore:
    """Deterministic state machine: the same events at the same times give the same actions.

    All times are seconds of one monotonic clock. `connect_timeout`: seconds after which a request ends in
    `BrokerUnreachableError` if no broker has ever answered; None waits. `retry_overloaded`: retry after
    `overloaded` errors, after the delay that the broker requests.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        connect_timeout: float | None = None,
        retry_overloaded: bool = False,
    ) -> None:
        self._link = Link(endpoints)
        self._pending = PendingTable(self._link, inf if connect_timeout is None else connect_timeout)
        self._retry_overloaded = retry_overloaded
        self._acks: list[bytes] = []
        self._closed = False

    @property
    def endpoint(self) -> str:
        """The current endpoint; before the first connection, the first one."""
        return self._link.endpoint

    @property
    def unfinished(self) -> int:
        """Number of requests and queries that have not ended."""
        return len(self._pending.by_key)

    def handle(self, event: ev.Event, now: float) -> list[ev.Action]:
        """Process one event and return the actions that follow from it.

        Raises `ClientClosedError` for a request or query after the client was closed.
        """
        match event:
            case ev.SubmitRequested(submit, payload):
                timeout = inf if submit.timeout_seconds is None else submit.timeout_seconds
                return self._add(Pending(event.key, submit, payload, now, timeout, event.key), now)
            case ev.StatsRequested(key, timeout):
                return self._add(Pending(key, messages.StatsQuery(), (), now, timeout, key), now)
            case ev.CancelRequested(key):
                return self._cancel(key, now)
            case ev.CloseRequested():
                return self._close()
            case _ if self._closed or not self._link.is_started:
                return []
            case ev.Received(message, payload):
                return self._receive(message, payload, now)
            case ev.Tick():
                return self._tick(now)
            case ev.InvalidMessage(error):
                return self._receive_invalid(error)
            case ev.HandshakeRejected(reason):
                return self._handshake_rejected(reason, now)
            case ev.HandshakeFailed(reason):
                return self._warn("handshake failed", reason) if self._link.record_failure(reason) else []
            case ev.Disconnected():
                return self._connect() if self._link.reconnect(now) else []

    def next_deadline(self) -> float | None:
        """Return when the next `Tick` is due; None before the first request and after closing."""
        if self._closed or not self._link.is_started:
            return None
        first = self._pending.timers.first()
        return min(self._link.next_heartbeat, self._link.dead_at, inf if first is None else first)

    # ---- requested by the application --------------------------------------------------------------------

    def _add(self, entry: Pending, now: float) -> list[ev.Action]:
        if self._closed:
            raise ClientClosedError("the client is closed")
        self._pending.add(entry)
        actions = [] if self._link.is_started else self._connect_next(now)
        return actions + self._pending.transmit(entry, now)

    def _cancel(self, key: bytes, now: float) -> list[ev.Action]:
        entry = self._pending.by_key.get(key)
        if entry is None or entry.cancel_deadline is not None:
            return []
        if not entry.ever_sent or entry.retry_at is not None:
            return self._complete(entry, CancelledError("cancelled before it was sent to a broker"))
        entry.cancel_deadline = now + self._link.liveness_timeout
        return self._pending.transmit(entry, now)

    def _close(self) -> list[ev.Action]:
        if self._closed:
            return []
        actions = self._complete_all(ClientClosedError("the client was closed before the answer arrived"))
        if self._link.is_established:
            actions += [*self._acknowledge(), ev.Send(messages.Goodbye())]
        self._closed = True
        return actions

    # ---- received from the broker ------------------------------------------------------------------------

    def _receive(self, message: messages.BrokerToClient, payload: ev.Payload, now: float) -> list[ev.Action]:
        resend_all = self._link.record_message(now)
        actions: list[ev.Action] = []
        match message:
            case messages.Accepted(request_ids=ids):
                for request_id in ids:
                    self._pending.mark_accepted(request_id)
            case messages.Progress(request_id=request_id):
                if (entry := self._pending.mark_accepted(request_id)) is not None:
                    actions.append(ev.ReportProgress(entry.key, message, payload))
            case messages.Result():
                actions += self._receive_result(message, payload)
            case messages.Error():
                actions += self._receive_error(message, now)
            case messages.Stats():
                actions += self._receive_stats(message, payload)
            case messages.BrokerHeartbeat():
                interval = self._link.interval
                resend_all |= self._link.apply_heartbeat(message, now)
                if self._link.interval != interval:
                    for entry in self._pending.by_key.values():
                        self._pending.schedule(entry)
        if resend_all:
            actions += self._pending.transmit_all(now)
        return actions

    def _receive_result(self, message: messages.Result, payload: ev.Payload) -> list[ev.Action]:
        self._acks.append(message.request_id)
        entry = self._pending.by_id.get(message.request_id)
        if entry is None:
            return []
        if not payload or len(payload) != len(message.images):
            problem = f"expected one frame per image, got {len(message.images)} images and {len(payload)} frames"
            return self._complete(entry, ProtocolError(problem))
        return self._complete(entry, ev.Answer(message, payload))

    def _receive_stats(self, message: messages.Stats, payload: ev.Payload) -> list[ev.Action]:
        outcome: ev.Answer | ImagegenError = ev.Answer(message, payload)
        if len(payload) != 1:
            outcome = ProtocolError(f"expected the statistics in one frame, got {len(payload)} frames")
        queries = [each for each in self._pending.by_key.values() if isinstance(each.message, messages.StatsQuery)]
        return [action for entry in queries for action in self._complete(entry, outcome)]

    def _receive_error(self, message: messages.Error, now: float) -> list[ev.Action]:
        error = error_from_wire(message.code, message.message, message.retry_after_seconds)
        if message.request_id is None:
            return self._connection_error(error)
        self._acks.append(message.request_id)
        entry = self._pending.by_id.get(message.request_id)
        if entry is None:
            return []
        if isinstance(error, OverloadedError) and self._retry_overloaded and entry.cancel_deadline is None:
            delay = error.retry_after_seconds or self._link.interval
            if self._pending.retry_later(entry, delay, now):
                return []
        return self._complete(entry, error)

    def _receive_invalid(self, error: ProtocolError) -> list[ev.Action]:
        # Without an acknowledgement the broker would repeat an undecodable answer for ever.
        if error.request_id is None:
            return self._connection_error(error)
        self._acks.append(error.request_id)
        entry = self._pending.by_id.get(error.request_id)
        return [] if entry is None else self._complete(entry, error)

    def _connection_error(self, error: ImagegenError) -> list[ev.Action]:
        """Handle an error that names no request."""
        if isinstance(error, UnsupportedVersionError | UnauthorizedError):
            return self._complete_all(error)
        return self._warn("error received", f"{error.code}: {error.message}")

    # ---- connection and time -----------------------------------------------------------------------------

    def _handshake_rejected(self, reason: str, now: float) -> list[ev.Action]:
        """Connect to the next endpoint; once all have rejected this client, end everything."""
        if not self._link.record_rejection():
            return self._connect_next(now)
        return self._complete_all(UnauthorizedError(f"{self.endpoint}: {reason}"))

    def _connect_next(self, now: float) -> list[ev.Action]:
        self._link.connect_next(now)
        return self._connect()

    def _connect(self) -> list[ev.Action]:
        """Open a connection. The broker answers the heartbeat, and then everything unfinished is sent."""
        self._pending.mark_unsent()
        return [ev.Connect(self.endpoint), ev.Send(messages.ClientHeartbeat())]

    def _tick(self, now: float) -> list[ev.Action]:
        """Send collected acknowledgements, and do what is due: failover, timeouts, resends, heartbeat."""
        actions = self._acknowledge()
        if now >= self._link.dead_at:
            actions += self._connect_next(now)
        for entry in self._pending.pop_due(now):
            actions += self._act(entry, now)
        if now >= self._link.next_heartbeat:
            self._link.next_heartbeat = now + self._link.interval
            actions.append(ev.Send(messages.ClientHeartbeat()))
        return actions

    def _act(self, entry: Pending, now: float) -> list[ev.Action]:
        if now >= self._pending.end_at(entry):
            return self._complete(entry, self._pending.end_error(entry))
        if entry.retry_at is not None and now >= entry.retry_at:
            entry.retry_at = None
            return self._pending.transmit(entry, now)
        if now >= self._pending.resend_at(entry):
            return self._pending.transmit(entry, now)
        self._pending.schedule(entry)
        return []

    # ---- actions -----------------------------------------------------------------------------------------

    def _acknowledge(self) -> list[ev.Action]:
        if not self._acks:
            return []
        ids, self._acks = list(dict.fromkeys(self._acks)), []
        step = MAX_IDS_PER_MESSAGE
        return [ev.Send(messages.Ack(request_ids=ids[start : start + step])) for start in range(0, len(ids), step)]

    def _complete_all(self, error: ImagegenError) -> list[ev.Action]:
        return [action for entry in list(self._pending.by_key.values()) for action in self._complete(entry, error)]

    def _complete(self, entry: Pending, outcome: ev.Answer | ImagegenError) -> list[ev.Action]:
        self._pending.remove(entry)
        complete = ev.Complete(entry.key, outcome)
        if isinstance(entry.message, messages.StatsQuery):
            return [complete]
        fields = {"request_id": entry.id.hex()}
        if isinstance(outcome, ImagegenError):
            fields["outcome"] = outcome.code
        elif isinstance(outcome.message, messages.Result):
            fields |= {"outcome": "result", "worker": outcome.message.worker}
        return [ev.LogEvent(logging.DEBUG, "request ended", fields), complete]

    def _warn(self, text: str, reason: str) -> list[ev.Action]:
        return [ev.LogEvent(logging.WARNING, text, {"broker": self.endpoint, "reason": reason})]
