"""The worker's sessions with its brokers: registration, heartbeats, and the detection of silent brokers."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf

import msgspec

from imagegen_protocol import ProtocolError
from imagegen_protocol.costs import CostModel
from imagegen_protocol.errors import UnauthorizedError, WorkerNameTakenError
from imagegen_protocol.limits import DEFAULT_HEARTBEAT_INTERVAL_SECONDS, DEFAULT_LIVENESS
from imagegen_protocol.messages import BrokerHeartbeat, Error, Goodbye, WorkerMessage
from imagegen_protocol.transfers import Buffer, Downloads
from imagegen_worker.core.events import Reconnect, Send
from imagegen_worker.core.state import WorkerState

COALESCE_SECONDS = 0.02
"""Delay of a heartbeat that is not urgent, so that several changes share it."""
CONGESTED_INTERVALS = 1.5
"""Intervals without confirmation of a heartbeat after which the link to the broker counts as congested. On a good
link the next heartbeat of the broker confirms it."""
FULL_REPORT_INTERVAL = 60
"""Number of heartbeats after which one reports all costs again: an earlier heartbeat may have been lost."""
MAX_ERROR_MESSAGE_LENGTH = 2000
"""Longer messages are truncated, so that an ERROR fits into its header frame."""


@dataclass(slots=True)
class BrokerSession:
    """The worker's view of one broker. Times are monotonic seconds."""

    index: int
    unregistered_since: float
    report_at: float
    """When the next READY (unregistered) or HEARTBEAT (registered) is due."""
    session: int = 0
    """The session number that the broker assigned; 0 while unregistered."""
    epoch: bytes | None = None
    """The epoch of the broker that registered this worker."""
    last_epoch: bytes | None = None
    """The epoch of the last broker heartbeat, whether or not it registered this worker."""
    beat: int = 0
    interval: float = DEFAULT_HEARTBEAT_INTERVAL_SECONDS
    liveness: int = DEFAULT_LIVENESS
    received_at: float = 0.0
    """When the last message arrived."""
    downloads: Downloads = field(default_factory=Downloads)
    """Payloads of requests that are fetched from this broker."""
    ready_sent: bool = False
    """Whether a READY was sent and not answered yet."""
    heartbeats: int = 0
    """Number of the last heartbeat sent to the broker."""
    unconfirmed: tuple[int, float] | None = None
    """Number and time of a heartbeat that the broker has not confirmed; those after it are not observed."""
    reported_costs: dict[str, CostModel] = field(default_factory=dict)
    """The costs that were reported last, by model."""
    capabilities: bytes = b""
    """The capabilities in the READY that was sent last."""
    unanswered: int = 0
    """Intervals since the first unanswered READY."""
    logged_error: str = ""
    """The last ERROR that was logged; repetitions are not logged."""

    @property
    def registered(self) -> bool:
        """Whether the broker has accepted READY and is alive."""
        return self.session > 0

    @property
    def is_in_use(self) -> bool:
        """Whether the broker has accepted READY, or can be expected to answer the one that was sent."""
        return self.registered or (self.ready_sent and self.unanswered < self.liveness)

    @property
    def dead_at(self) -> float:
        """When the broker counts as dead unless a message arrives."""
        return self.received_at + self.liveness * self.interval

    @property
    def silent_since(self) -> float:
        """When the last message of an unregistered broker arrived; infinite while registered."""
        return inf if self.registered else max(self.unregistered_since, self.received_at)

    def needs_reconnect(self, now: float) -> bool:
        """Return whether `liveness` further intervals have passed without an answer to READY or any message."""
        silent = now >= self.dead_at
        return self.ready_sent and silent and self.unanswered > 0 and self.unanswered % self.liveness == 0

    def update(self, heartbeat: BrokerHeartbeat, now: float) -> None:
        """Store the fields that every broker heartbeat carries."""
        self.beat = heartbeat.beat
        if heartbeat.number is None or (self.unconfirmed and heartbeat.number >= self.unconfirmed[0]):
            self.unconfirmed = None
        self.last_epoch = heartbeat.epoch
        self.interval, self.liveness = heartbeat.interval_seconds, heartbeat.liveness
        self.downloads.configure(self.interval, self.liveness, heartbeat.fetch_window_bytes)
        self.report_at = min(self.report_at, now + self.interval)

    def register(self, heartbeat: BrokerHeartbeat) -> None:
        """Store the session of a heartbeat that answers READY; fetch what is missing on the new connection."""
        self.session, self.epoch = heartbeat.session, heartbeat.epoch
        self.downloads.restart()
        self.heartbeats, self.unconfirmed = 0, None
        self.ready_sent = False
        self.unanswered = 0
        self.logged_error = ""

    def is_congested(self, now: float) -> bool:
        """Return whether messages to the broker wait for a slow link."""
        return self.unconfirmed is not None and now > self.unconfirmed[1] + CONGESTED_INTERVALS * self.interval

    def unregister(self, now: float) -> None:
        """End the session; READY is due now."""
        if self.session:
            self.unregistered_since = now
        self.session = 0
        self.ready_sent = False
        self.report_at = now

    def matches(self, heartbeat: BrokerHeartbeat) -> bool:
        """Return whether a heartbeat belongs to this session."""
        return (heartbeat.epoch, heartbeat.session) == (self.epoch, self.session)


class BrokerSessions:
    """Sessions with all configured brokers, by index. Each broker gets the same reports."""

    def __init__(self, state: WorkerState, brokers: int, now: float) -> None:
        self._state = state
        self._sessions = [BrokerSession(index, unregistered_since=now, report_at=now) for index in range(brokers)]

    def __getitem__(self, index: int) -> BrokerSession:
        return self._sessions[index]

    def registered(self) -> list[BrokerSession]:
        """Return the sessions of the brokers that have registered this worker."""
        return [session for session in self._sessions if session.registered]

    # ---- messages from a broker ------------------------------------------------------------------------------

    def on_heartbeat(self, session: BrokerSession, heartbeat: BrokerHeartbeat, now: float) -> None:
        """Register with the broker, or end the session if the broker no longer knows this worker."""
        session.update(heartbeat, now)
        if self._is_duplicate(session):
            if session.registered or session.ready_sent:
                self._state.log(logging.WARNING, "duplicate broker endpoint ignored", broker=session.index)
            session.unregister(now)
        elif heartbeat.session == 0:
            if not (session.ready_sent and now < session.report_at):
                self._register_again(session, now)
        elif session.ready_sent:
            session.register(heartbeat)
            fields = {"session": session.session, "interval": session.interval}
            self._state.log(logging.INFO, "registered", broker=session.index, **fields)
            for part in self._state.models.encode_capabilities():
                if part != session.capabilities:
                    self.send(session, self._state.ready_message(), (part,))
            if self._state.draining:
                self.report(session, now)  # READY has no state field: report at once that the worker drains
        elif not session.matches(heartbeat):
            self._register_again(session, now)

    def on_error(self, session: BrokerSession, error: Error, now: float) -> None:
        """Log an ERROR of the broker once; end the session if the broker rejects this worker."""
        text = f"{error.code}: {error.message}"
        if text != session.logged_error:
            session.logged_error = text
            self._state.log(logging.WARNING, "refused by broker", broker=session.index, error=text)
        if error.code in (WorkerNameTakenError.code, UnauthorizedError.code) and session.registered:
            session.unregister(now)
            session.report_at = now + session.interval

    def on_malformed(self, session: BrokerSession, error: ProtocolError) -> None:
        """Log an invalid message and reply with an ERROR."""
        self._state.log(logging.WARNING, "invalid message received", broker=session.index, error=error.message)
        reply = Error(code=error.code, message=truncate_message(error.message), request_id=error.request_id)
        self.send(session, reply)

    def _register_again(self, session: BrokerSession, now: float) -> None:
        if session.registered:
            self._state.log(logging.WARNING, "broker restarted", broker=session.index)
        session.unregister(now)
        self.report(session, now)

    def _is_duplicate(self, session: BrokerSession) -> bool:
        """Return whether this endpoint leads to a broker that an earlier endpoint already reaches.

        Such a session sends nothing, even while the earlier one registers again: the two would keep replacing each
        other's registration.
        """
        earlier = [other.last_epoch for other in self._sessions[: session.index] if other.is_in_use]
        return session.last_epoch is not None and session.last_epoch in earlier

    # ---- time ------------------------------------------------------------------------------------------------

    def check_deadlines(self, now: float) -> None:
        """End the sessions of silent brokers, and send the reports that are due."""
        for session in self._sessions:
            if session.registered and now >= session.dead_at:
                session.unregister(now)
                session.unanswered = session.liveness  # the loss is logged here, and not again below
                silent = now - session.received_at
                self._state.log(logging.WARNING, "broker lost", broker=session.index, silent_seconds=silent)
                self._state.actions.append(Reconnect(session.index))
            if self._state.models.names and now >= session.report_at and not self._is_duplicate(session):
                if session.ready_sent:
                    session.unanswered += 1
                    if session.unanswered == session.liveness and not session.logged_error:
                        text = "broker did not answer, retrying"
                        self._state.log(logging.WARNING, text, broker=session.index)
                if session.needs_reconnect(now):
                    self._state.actions.append(Reconnect(session.index))
                self.report(session, now)

    def deadlines(self) -> Iterator[float]:
        """Yield the times at which `check_deadlines` has something to do."""
        for session in self._sessions:
            if session.registered:
                yield session.dead_at
            if self._state.models.names and not self._is_duplicate(session):
                yield session.report_at

    # ---- messages to the brokers -----------------------------------------------------------------------------

    def send(self, session: BrokerSession, message: WorkerMessage, frames: tuple[Buffer, ...] = ()) -> None:
        """Send a message to one broker."""
        self._state.actions.append(Send(session.index, message, frames))

    def report(self, session: BrokerSession, now: float) -> None:
        """Send HEARTBEAT, or READY if unregistered; both list all held requests."""
        state = self._state
        if not state.models.names:
            return
        session.report_at = now + session.interval
        if session.registered:
            session.heartbeats += 1
            session.unconfirmed = session.unconfirmed or (session.heartbeats, now)
            heartbeat = state.heartbeat_message(session.session, session.beat, now)
            token, number = session.downloads.token, session.heartbeats
            is_full = number % FULL_REPORT_INTERVAL == 0
            costs = state.costs.changed({} if is_full else session.reported_costs)
            session.reported_costs |= costs
            self.send(session, msgspec.structs.replace(heartbeat, token=token, number=number, costs=costs))
        else:
            session.ready_sent = True
            session.capabilities = state.models.encode_capabilities()[0]
            ready = state.ready_message()
            session.reported_costs = dict(ready.costs)
            self.send(session, ready, (session.capabilities,))

    def report_start(self, now: float) -> None:
        """Send READY to every broker: the engine has started."""
        for session in self._sessions:
            self.report(session, now)

    def report_now(self, now: float) -> None:
        """Send a HEARTBEAT now to every broker that has registered this worker."""
        for session in self.registered():
            self.report(session, now)

    def report_capabilities(self, name: str) -> None:
        """Send the capabilities of one model, in READY, to every broker that has registered this worker."""
        for session in self.registered():
            for part in self._state.models.encode_capabilities(name):
                self.send(session, self._state.ready_message(), (part,))

    def report_soon(self, now: float) -> None:
        """Send a HEARTBEAT within `COALESCE_SECONDS` to every broker that has registered this worker."""
        for session in self.registered():
            session.report_at = min(session.report_at, now + COALESCE_SECONDS)

    def send_goodbye(self) -> None:
        """Send GOODBYE to every broker that has registered this worker."""
        for session in self.registered():
            self.send(session, Goodbye())


def truncate_message(message: str) -> str:
    """Return an error message in a form and length that can be sent."""
    message = message.encode(errors="replace").decode()  # lone surrogates cannot be encoded
    if len(message) <= MAX_ERROR_MESSAGE_LENGTH:
        return message
    return message[: MAX_ERROR_MESSAGE_LENGTH - 3] + "..."
