"""The client's side of the protocol without sockets, clock, threads or randomness.

The core owns every request until its terminal answer has arrived (`docs/protocol.md` §2). It decides what is
sent, when it is sent again, when a broker counts as dead and which one is dialled next. Requests go out on a
connection only once the broker has said something on it: nothing grows stale in the buffers of a socket
that leads nowhere, and the seconds left of a deadline are those of the real sending.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import msgspec

from imagegen_client.events import (
    Action,
    Answer,
    CancelAsked,
    CloseAsked,
    Dial,
    Event,
    Finish,
    Lost,
    Payload,
    Received,
    Refused,
    Report,
    Send,
    StatsAsked,
    SubmitAsked,
    Suspected,
    Unreadable,
    Warn,
)
from imagegen_client.link import Link
from imagegen_client.timers import Timers
from imagegen_protocol import (
    BrokerUnreachableError,
    CancelledError,
    ClientClosedError,
    DeadlineExceededError,
    ImagegenError,
    OverloadedError,
    ProtocolError,
    UnauthorizedError,
    UnsupportedVersionError,
    error_from_wire,
)
from imagegen_protocol.limits import ID_BYTES, MAX_IDS_PER_MESSAGE
from imagegen_protocol.messages import (
    Accepted,
    Ack,
    BrokerHeartbeat,
    BrokerToClient,
    Cancel,
    ClientHeartbeat,
    Error,
    Goodbye,
    Progress,
    Result,
    Stats,
    StatsQuery,
    Submit,
)


@dataclass(slots=True, eq=False)
class _Pending:
    """One unfinished request, or one question for statistics; times are monotonic seconds."""

    key: bytes
    message: Submit | StatsQuery
    payload: Payload
    asked_at: float
    timeout: float
    id: bytes
    """On the wire; a retry after `overloaded` gets a new one, since the broker ignores acknowledged ids."""
    sent_at: float | None = None
    """When it last went out on the present connection."""
    ever_sent: bool = False
    accepted: bool = False
    cancel_by: float | None = None
    """Set once it was cancelled: when to stop waiting for the broker's word."""
    retry_at: float | None = None
    retries: int = 0


class ClientCore:
    """Events in, actions out; the same events at the same times give the same actions.

    `handle` takes one event, `settle` follows a batch of them (it joins the acknowledgements), `tick` is due at
    `next_deadline()`. All times are seconds of one monotonic clock.

    `connect_timeout`: seconds after which a request ends in `BrokerUnreachableError` if no broker was ever
    heard; None waits. `retry_overloaded`: ask again after `overloaded`, when the broker said to.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        connect_timeout: float | None = None,
        retry_overloaded: bool = False,
    ) -> None:
        self._link = Link(endpoints)
        self._connect_timeout = inf if connect_timeout is None else connect_timeout
        self._retry_overloaded = retry_overloaded
        self._pending: dict[bytes, _Pending] = {}
        self._by_id: dict[bytes, _Pending] = {}
        self._timers = Timers()
        self._acks: list[bytes] = []
        self._closed = False

    @property
    def endpoint(self) -> str:
        """The endpoint dialled last, or the one to be dialled first."""
        return self._link.endpoint

    @property
    def unfinished(self) -> int:
        """How many requests and questions have no end yet."""
        return len(self._pending)

    # ---- what the shell calls ----------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event. Raises `ClientClosedError` when something is asked of a closed client."""
        match event:
            case Received() | Unreadable() | Refused() | Suspected() | Lost() if (
                self._closed or not self._link.dials
            ):
                return []
            case Received(message, payload):
                return self._receive(message, payload, now)
            case Unreadable(error):
                return self._unreadable(error)
            case Refused(reason):
                return self._refused(reason, now)
            case Suspected(reason):
                news = self._link.suspect(reason)
                return [Warn(f"broker {self.endpoint}: {reason}; trying again")] if news else []
            case Lost():
                return self._open(now) if self._link.redial(now) else []
            case CancelAsked(key):
                return self._cancel(key, now)
            case CloseAsked():
                return self._close()
            case SubmitAsked(submit, payload):
                timeout = inf if submit.timeout_seconds is None else submit.timeout_seconds
                return self._add(_Pending(event.key, submit, payload, now, timeout, event.key), now)
            case StatsAsked(key, timeout):
                return self._add(_Pending(key, StatsQuery(), (), now, timeout, key), now)

    def settle(self) -> list[Action]:
        """Return the acknowledgements that came up since the last call, joined."""
        if not self._acks:
            return []
        ids, self._acks = list(dict.fromkeys(self._acks)), []
        step = MAX_IDS_PER_MESSAGE
        return [Send(Ack(request_ids=ids[start : start + step])) for start in range(0, len(ids), step)]

    def tick(self, now: float) -> list[Action]:
        """Do what is due: heartbeats, resends, deadlines, and dialling when the broker is dead."""
        actions: list[Action] = []
        if self._closed or not self._link.dials:
            return actions
        if now >= self._link.dead_at:
            actions += self._dial(now)
        for key in self._timers.pop_due(now):
            actions += self._act(self._pending[key], now)
        if now >= self._link.next_heartbeat:
            self._link.next_heartbeat = now + self._link.interval
            actions.append(Send(ClientHeartbeat()))
        return actions

    def next_deadline(self) -> float | None:
        """Return when `tick` is due; None while nothing was ever asked, and after the end."""
        if self._closed or not self._link.dials:
            return None
        first = self._timers.first()
        return min(self._link.next_heartbeat, self._link.dead_at, inf if first is None else first)

    # ---- asked by the application ------------------------------------------------------------------------

    def _add(self, entry: _Pending, now: float) -> list[Action]:
        if self._closed:
            raise ClientClosedError("the client is closed")
        if entry.key in self._pending:
            raise ValueError(f"the id {entry.key.hex()} is in use")
        self._pending[entry.key] = self._by_id[entry.id] = entry
        actions = [] if self._link.dials else self._dial(now)
        return actions + self._transmit(entry, now)

    def _cancel(self, key: bytes, now: float) -> list[Action]:
        entry = self._pending.get(key)
        if entry is None or entry.cancel_by is not None:
            return []
        if not entry.ever_sent or entry.retry_at is not None:
            return [self._finish(entry, CancelledError("cancelled before the broker had it"))]
        entry.cancel_by = now + self._link.silence
        return self._transmit(entry, now)

    def _close(self) -> list[Action]:
        if self._closed:
            return []
        gone = "the client was closed before the answer came"
        actions: list[Action] = [self._finish(e, ClientClosedError(gone)) for e in list(self._pending.values())]
        if self._link.up:
            actions += self.settle()
            actions.append(Send(Goodbye()))
        self._closed = True
        return actions

    # ---- heard from the broker ---------------------------------------------------------------------------

    def _receive(self, message: BrokerToClient, payload: Payload, now: float) -> list[Action]:
        resend_all = self._link.heard(now)
        actions: list[Action] = []
        match message:
            case Accepted(request_ids=ids):
                for request_id in ids:
                    self._accepted(self._by_id.get(request_id))
            case Progress(request_id=request_id):
                self._accepted(entry := self._by_id.get(request_id))
                if entry is not None:
                    actions.append(Report(entry.key, message, payload))
            case Result():
                actions += self._result(message, payload)
            case Error():
                actions += self._error(message, now)
            case Stats():
                actions += self._stats(message, payload)
            case BrokerHeartbeat():
                interval = self._link.interval
                resend_all |= self._link.announced(message, now)
                if self._link.interval != interval:
                    for entry in self._pending.values():
                        self._schedule(entry)
        if resend_all:
            actions += self._transmit_all(now)
        return actions

    def _accepted(self, entry: _Pending | None) -> None:
        # A cancelled request waits for the answer to its CANCEL: an ACCEPTED on its way is none.
        if entry is not None and entry.sent_at is not None and entry.cancel_by is None:
            entry.accepted = True
            self._schedule(entry)

    def _result(self, message: Result, payload: Payload) -> list[Action]:
        self._acks.append(message.request_id)
        entry = self._by_id.get(message.request_id)
        if entry is None:
            return []
        if not payload or len(payload) != len(message.images):
            problem = f"the result lists {len(message.images)} images and has {len(payload)} frames"
            return [self._finish(entry, ProtocolError(problem))]
        return [self._finish(entry, Answer(message, payload))]

    def _stats(self, message: Stats, payload: Payload) -> list[Action]:
        outcome: Answer | ImagegenError = Answer(message, payload)
        if len(payload) != 1:
            outcome = ProtocolError(f"the statistics have {len(payload)} frames in place of one")
        questions = [e for e in self._pending.values() if isinstance(e.message, StatsQuery)]
        return [self._finish(entry, outcome) for entry in questions]

    def _error(self, message: Error, now: float) -> list[Action]:
        error = error_from_wire(message.code, message.message, message.retry_after_seconds)
        if message.request_id is None:
            return self._unattributed(error)
        self._acks.append(message.request_id)
        entry = self._by_id.get(message.request_id)
        if entry is None:
            return []
        if isinstance(error, OverloadedError) and self._retry_overloaded and entry.cancel_by is None:
            return self._retry_later(entry, error, now)
        return [self._finish(entry, error)]

    def _unreadable(self, error: ProtocolError) -> list[Action]:
        # Dropped, a terminal answer that can't be read would come again for ever and its job never end.
        if error.request_id is None:
            return self._unattributed(error)
        self._acks.append(error.request_id)
        entry = self._by_id.get(error.request_id)
        return [] if entry is None else [self._finish(entry, error)]

    def _unattributed(self, error: ImagegenError) -> list[Action]:
        """Something is wrong that names no request."""
        if isinstance(error, UnsupportedVersionError | UnauthorizedError):
            return [self._finish(entry, error) for entry in list(self._pending.values())]
        return [Warn(f"broker {self.endpoint}: {error.code}: {error.message}")]

    def _retry_later(self, entry: _Pending, error: OverloadedError, now: float) -> list[Action]:
        salt = (entry.retries + 1).to_bytes(hashlib.blake2b.SALT_SIZE, "big")
        new_id = hashlib.blake2b(entry.key, digest_size=ID_BYTES, salt=salt).digest()
        # The first id is random, so the new one serves as jitter too: up to once more the time told.
        jitter = 1 + int.from_bytes(new_id[:4], "big") / 2**32
        retry_at = now + (error.retry_after_seconds or self._link.interval) * jitter
        if retry_at >= entry.asked_at + entry.timeout:
            return [self._finish(entry, error)]
        del self._by_id[entry.id]
        entry.id, entry.retry_at, entry.retries = new_id, retry_at, entry.retries + 1
        entry.sent_at, entry.accepted = None, False
        self._by_id[new_id] = entry
        self._schedule(entry)
        return []

    def _refused(self, reason: str, now: float) -> list[Action]:
        """Turn to the next broker, or, once all have refused us, end what is asked."""
        if not self._link.refused():
            return self._dial(now)
        error = UnauthorizedError(f"{self.endpoint}: {reason}")
        return [self._finish(entry, error) for entry in list(self._pending.values())]

    # ---- sent to the broker ------------------------------------------------------------------------------

    def _dial(self, now: float) -> list[Action]:
        """Open a connection to the next endpoint."""
        self._link.dial(now)
        return self._open(now)

    def _open(self, now: float) -> list[Action]:
        """Open a connection; the heartbeat makes the broker speak, and then what is unfinished is sent again."""
        for entry in self._pending.values():
            entry.sent_at, entry.accepted = None, False
            self._schedule(entry)
        return [Dial(self.endpoint), Send(ClientHeartbeat())]

    def _transmit_all(self, now: float) -> list[Action]:
        waiting = [entry for entry in self._pending.values() if entry.retry_at is None]
        return [action for entry in waiting for action in self._transmit(entry, now)]

    def _transmit(self, entry: _Pending, now: float) -> list[Action]:
        """Send it, or leave it for when the broker speaks."""
        actions: list[Action] = []
        # Rounding must not make it more than was asked for, which may be the most that is allowed.
        left = min(entry.timeout, entry.asked_at + entry.timeout - now)
        entry.sent_at, entry.accepted = None, False
        if self._link.up and (left > 0 or entry.cancel_by is not None):
            entry.sent_at, entry.ever_sent = now, True
            if entry.cancel_by is not None:
                actions.append(Send(Cancel(request_id=entry.id)))
            elif isinstance(entry.message, StatsQuery):
                actions.append(Send(entry.message))
            else:
                message = entry.message
                if left != inf or entry.id is not entry.key:
                    seconds = None if left == inf else left
                    message = msgspec.structs.replace(message, request_id=entry.id, timeout_seconds=seconds)
                actions.append(Send(message, entry.payload))
        self._schedule(entry)
        return actions

    # ---- time --------------------------------------------------------------------------------------------

    def _act(self, entry: _Pending, now: float) -> list[Action]:
        """One of the times of this request has come: end it, send it, or wait on."""
        if now >= self._end_at(entry):
            return [self._finish(entry, self._end_error(entry))]
        if entry.retry_at is not None and now >= entry.retry_at:
            entry.retry_at = None
            return self._transmit(entry, now)
        if now >= self._resend_at(entry):
            return self._transmit(entry, now)
        self._schedule(entry)
        return []

    def _schedule(self, entry: _Pending) -> None:
        if entry.accepted and entry.timeout == inf and entry.cancel_by is None and self._link.ever_heard:
            self._timers.set(entry.key, None)  # as below, without the sums: it is so for most
            return
        retry_at = inf if entry.retry_at is None else entry.retry_at
        earliest = min(self._end_at(entry), self._resend_at(entry), retry_at)
        self._timers.set(entry.key, None if earliest == inf else earliest)

    def _resend_at(self, entry: _Pending) -> float:
        if entry.sent_at is None or entry.accepted:
            return inf
        return entry.sent_at + 2 * self._link.interval

    def _end_at(self, entry: _Pending) -> float:
        """When this request ends though no answer came."""
        if entry.cancel_by is not None:
            return entry.cancel_by
        if isinstance(entry.message, StatsQuery):
            return entry.asked_at + entry.timeout
        if self._link.ever_heard:
            # One interval later than the broker, whose answer says more.
            return entry.asked_at + entry.timeout + self._link.interval
        return entry.asked_at + min(entry.timeout, self._connect_timeout)

    def _end_error(self, entry: _Pending) -> ImagegenError:
        if entry.cancel_by is not None:
            return CancelledError("cancelled; the broker has not confirmed it")
        if isinstance(entry.message, Submit) and self._link.ever_heard:
            return DeadlineExceededError(f"no result within {entry.timeout:g} s, and no word of the broker")
        waited = self._end_at(entry) - entry.asked_at
        tried = " or ".join(self._link.endpoints)
        return BrokerUnreachableError(
            f"no broker answered at {tried} within {waited:.3g} s", suspicions=self._link.suspicions
        )

    def _finish(self, entry: _Pending, outcome: Answer | ImagegenError) -> Finish:
        del self._pending[entry.key]
        del self._by_id[entry.id]
        self._timers.set(entry.key, None)
        return Finish(entry.key, outcome)
