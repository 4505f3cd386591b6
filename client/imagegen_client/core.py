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
from imagegen_client.answers import check_answer
from imagegen_client.link import Link
from imagegen_client.outage import Outage
from imagegen_client.payloads import Payloads
from imagegen_client.pending import Pending
from imagegen_client.pending_table import PendingTable
from imagegen_client.receipts import Receipts
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


class ClientCore:
    """Deterministic state machine: the same events at the same times give the same actions.

    All times are seconds of one monotonic clock. `connect_timeout`: seconds after which a request ends in
    `BrokerUnreachableError` if no broker has ever answered; None waits. `retry_overloaded`: retry after
    `overloaded` errors, after the delay that the broker requests. `receive_maximum`: maximum number of
    unacknowledged answers that the broker should send; None for the broker's maximum.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        connect_timeout: float | None = None,
        retry_overloaded: bool = False,
        receive_maximum: int | None = None,
    ) -> None:
        self._link = Link(endpoints)
        self._payloads = Payloads(self._link)
        timeout = inf if connect_timeout is None else connect_timeout
        self._pending = PendingTable(self._link, self._payloads, timeout)
        self._receipts = Receipts(self._payloads, receive_maximum)
        self._outage = Outage(self._link, self._pending)
        self._retry_overloaded = retry_overloaded
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
                return self._add(Pending(key, messages.StatsQuery(request_id=key), (), now, timeout, key), now)
            case ev.CancelRequested(key):
                return self._cancel(key, now)
            case ev.CloseRequested():
                return self._close()
            case _ if self._closed or not self._link.is_started:
                return []
            case ev.Tick():
                return self._tick(now)
            case _ if self._link.resume_at is not None:
                return []  # left over from a connection to a broker that has refused this client
            case ev.Received(message, payload):
                return self._receive(message, payload, now)
            case ev.InvalidMessage(error):
                return self._receive_invalid(error, now)
            case ev.HandshakeRejected(reason):
                return self._refused(UnauthorizedError(f"{self.endpoint}: {reason}"), reason, now)
            case ev.HandshakeFailed(reason):
                return self._warn("handshake failed", reason) if self._link.record_failure(reason) else []
            case ev.Disconnected():
                return self._connect() if self._link.reconnect(now) else []

    def next_deadline(self) -> float | None:
        """Return when the next `Tick` is due; None if only the application or the broker can cause one."""
        if self._closed or not self._link.is_started:
            return None
        first = self._pending.timers.first()
        times = [inf if first is None else first, self._outage.next_at]
        if self._link.resume_at is None:
            times += [self._link.next_heartbeat, self._link.dead_at, self._payloads.deadline()]
        elif self._pending.by_key:
            times.append(self._link.resume_at)
        earliest = min(times)
        return None if earliest == inf else earliest

    # ---- requested by the application --------------------------------------------------------------------

    def _add(self, entry: Pending, now: float) -> list[ev.Action]:
        if self._closed:
            raise ClientClosedError("the client is closed")
        self._pending.add(entry)
        actions = [] if self._link.is_started else self._connect_next(now)
        return actions + self._outage.report_new(entry) + self._pending.transmit(entry, now)

    def _cancel(self, key: bytes, now: float) -> list[ev.Action]:
        entry = self._pending.by_key.get(key)
        if entry is None or entry.cancel_deadline is not None:
            return []
        if not entry.ever_sent or entry.retry_at is not None:
            return self._complete(entry, CancelledError("cancelled before it was sent to a broker"))
        if entry.download is not None:
            return self._end_acknowledged(entry, CancelledError("cancelled before all of the answer had arrived"))
        entry.cancel_deadline = now + self._link.liveness_timeout
        return self._pending.transmit(entry, now)

    def _close(self) -> list[ev.Action]:
        if self._closed:
            return []
        actions = self._complete_all(ClientClosedError("the client was closed before the answer arrived"))
        if self._link.is_established:
            actions += [*self._receipts.acks(), ev.Send(messages.Goodbye())]
        self._closed = True
        return actions

    # ---- received from the broker ------------------------------------------------------------------------

    def _receive(self, message: messages.BrokerToClient, payload: ev.Payload, now: float) -> list[ev.Action]:
        if isinstance(message, messages.Error) and _is_refusal(error := _error_of(message), message.request_id):
            return self._refused(error, error.message, now)
        resend_all = self._link.record_message(now)
        if resend_all:
            self._payloads.restart(new_connection=False)
        actions: list[ev.Action] = []
        match message:
            case messages.Chunk():
                actions += self._receive_chunk(message, payload, now)
            case messages.Fetch():
                actions += self._payloads.answer(self._pending.by_id.get(message.request_id), message)
            case messages.Accepted(request_ids=ids):
                for request_id in ids:
                    if (entry := self._pending.mark_accepted(request_id)) is not None:
                        self._payloads.pause(entry)
            case messages.Progress():
                self._receipts.receive_token(message.token)
                if (entry := self._pending.mark_accepted(message.request_id)) is not None:
                    actions.append(ev.ReportProgress(entry.key, message, payload))
            case messages.Result() | messages.Stats():
                actions += self._receive_answer(message, payload)
            case messages.Error():
                actions += self._receive_error(message, now)
            case messages.BrokerHeartbeat():
                resend_all |= self._receive_heartbeat(message, now)
        if resend_all:
            actions += self._pending.transmit_all(now)
        return actions

    def _receive_heartbeat(self, message: messages.BrokerHeartbeat, now: float) -> bool:
        """Apply the broker's settings; return whether it has restarted or opened a new session."""
        interval = self._link.interval
        is_new = self._link.apply_heartbeat(message, now)
        if is_new:
            self._payloads.restart(new_connection=True)
        else:
            self._payloads.configure()
        if self._link.interval != interval:
            for entry in self._pending.by_key.values():
                self._pending.schedule(entry)
        return is_new

    def _receive_answer(self, message: messages.Result | messages.Stats, payload: ev.Payload) -> list[ev.Action]:
        entry = self._pending.by_id.get(message.request_id)
        is_result = isinstance(message, messages.Result)
        if entry is None or isinstance(entry.message, messages.Submit) != is_result:
            if is_result:
                self._receipts.acknowledge(message.request_id)
            return []
        outcome = check_answer(entry, message, payload)
        if outcome is not None:
            return self._end_acknowledged(entry, outcome)
        self._pending.mark_accepted(entry.id)
        return self._payloads.begin(entry, message)

    def _receive_chunk(self, message: messages.Chunk, payload: ev.Payload, now: float) -> list[ev.Action]:
        download = self._payloads.receive(message, payload, now)
        if download is None:
            return []
        entry = self._pending.by_id[message.request_id]
        assert entry.header is not None, "a download begins with the header of the answer"
        return self._end_acknowledged(entry, ev.Answer(entry.header, download.frames()))

    def _receive_error(self, message: messages.Error, now: float) -> list[ev.Action]:
        error = _error_of(message)
        if message.request_id is None:
            return self._warn("error received", f"{error.code}: {error.message}")
        self._receipts.acknowledge(message.request_id)
        entry = self._pending.by_id.get(message.request_id)
        if entry is None:
            return []
        retries = self._retry_overloaded and entry.cancel_deadline is None
        if isinstance(error, OverloadedError) and retries and isinstance(entry.message, messages.Submit):
            delay = error.retry_after_seconds or self._link.interval
            if self._pending.retry_later(entry, delay, now):
                return []
        return self._complete(entry, error)

    def _receive_invalid(self, error: ProtocolError, now: float) -> list[ev.Action]:
        if _is_refusal(error, error.request_id):
            return self._refused(error, error.message, now)
        if error.request_id is None:
            return self._warn("error received", f"{error.code}: {error.message}")
        if not error.is_answer:
            return []  # such as a progress report of a later version; the answer is still to come
        # Without an acknowledgement the broker would repeat an undecodable answer for ever.
        self._receipts.acknowledge(error.request_id)
        entry = self._pending.by_id.get(error.request_id)
        return [] if entry is None else self._complete(entry, error)

    # ---- connection and time -----------------------------------------------------------------------------

    def _refused(self, error: ImagegenError, reason: str, now: float) -> list[ev.Action]:
        """Connect to the next endpoint; once all have rejected this client, pause or fail all requests."""
        seconds = None
        if isinstance(error, OverloadedError):
            seconds = max(error.retry_after_seconds or self._link.liveness_timeout, self._link.interval)
        is_new = self._link.record_failure(reason)
        actions = self._warn("refused by the broker", f"{error.code}: {reason}") if is_new else []
        if not self._link.record_refusal(seconds):
            return actions + self._connect_next(now)
        # The key is random, so clients that were rejected together reconnect at different times.
        spread = int.from_bytes(next(iter(self._pending.by_key), b"")[:4]) / 2**32
        wait = self._link.take_refusals()
        self._link.pause((wait or self._link.interval) * (1 + spread / 2), now)
        self._payloads.restart(new_connection=True)
        self._pending.mark_unsent()
        return self._complete_all(error) if wait is None else actions

    def _connect_next(self, now: float) -> list[ev.Action]:
        self._link.connect_next(now)
        return self._connect()

    def _connect(self) -> list[ev.Action]:
        """Open a connection. The broker answers the heartbeat, and then everything unfinished is sent."""
        self._payloads.restart(new_connection=True)
        self._pending.mark_unsent()
        return [ev.Connect(self.endpoint), self._receipts.heartbeat()]

    def _tick(self, now: float) -> list[ev.Action]:
        """Perform all due work: acknowledgements, failover, timeouts, resends, transfers, reports, heartbeat."""
        if self._link.resume_at is not None:
            return self._tick_paused(now)
        actions = self._connect_next(now) if now >= self._link.dead_at else []
        actions += self._act_on_due(now) + self._receipts.acks()
        if self._link.is_established:
            actions += self._payloads.fetch(self._pending.by_id, now)
        actions += self._outage.report(now)
        if now >= self._link.next_heartbeat or self._receipts.is_due:
            self._link.next_heartbeat = now + self._link.interval
            actions.append(self._receipts.heartbeat())
        return actions

    def _tick_paused(self, now: float) -> list[ev.Action]:
        """Perform the due work while all endpoints reject this client."""
        assert self._link.resume_at is not None, "the caller checked it"
        actions = self._act_on_due(now)
        self._receipts.clear()  # brokers repeat answers that are not acknowledged
        if self._pending.by_key and now >= self._link.resume_at:
            actions += self._connect_next(now)
        return actions + self._outage.report(now)

    def _act_on_due(self, now: float) -> list[ev.Action]:
        return [action for entry in self._pending.pop_due(now) for action in self._act(entry, now)]

    def _act(self, entry: Pending, now: float) -> list[ev.Action]:
        if now >= self._pending.end_at(entry):
            end = self._complete if entry.download is None else self._end_acknowledged
            return end(entry, self._pending.end_error(entry))
        if entry.retry_at is not None and now >= entry.retry_at:
            entry.retry_at = None
            return self._pending.transmit(entry, now)
        if now >= self._pending.resend_at(entry):
            return self._pending.transmit(entry, now)
        self._pending.schedule(entry)
        return []

    # ---- actions -----------------------------------------------------------------------------------------

    def _complete_all(self, error: ImagegenError) -> list[ev.Action]:
        return [action for entry in list(self._pending.by_key.values()) for action in self._complete(entry, error)]

    def _end_acknowledged(self, entry: Pending, outcome: ev.Answer | ImagegenError) -> list[ev.Action]:
        """Complete an entry and acknowledge its answer, so that the worker can release it."""
        if isinstance(entry.message, messages.Submit):
            self._receipts.acknowledge(entry.id)
        return self._complete(entry, outcome)

    def _complete(self, entry: Pending, outcome: ev.Answer | ImagegenError) -> list[ev.Action]:
        self._pending.remove(entry)
        complete = ev.Complete(entry.key, outcome)
        is_query = isinstance(entry.message, messages.StatsQuery)
        return [complete] if is_query else [_end_event(entry, outcome), complete]

    def _warn(self, text: str, reason: str) -> list[ev.Action]:
        return [ev.LogEvent(logging.WARNING, text, {"broker": self.endpoint, "reason": reason})]


def _is_refusal(error: ImagegenError, request_id: bytes | None) -> bool:
    """Return whether an error rejects this client as a whole, not only one request."""
    return request_id is None and isinstance(error, UnsupportedVersionError | UnauthorizedError | OverloadedError)


def _error_of(message: messages.Error) -> ImagegenError:
    return error_from_wire(message.code, message.message, message.retry_after_seconds)


def _end_event(entry: Pending, outcome: ev.Answer | ImagegenError) -> ev.LogEvent:
    fields = {"request_id": entry.id.hex()}
    if isinstance(outcome, ImagegenError):
        fields["outcome"] = outcome.code
    elif isinstance(outcome.message, messages.Result):
        fields |= {"outcome": "result", "worker": outcome.message.worker}
    return ev.LogEvent(logging.DEBUG, "request ended", fields)
