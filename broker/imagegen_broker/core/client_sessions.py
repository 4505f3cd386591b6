"""`ClientSessions`: the messages of clients, and their liveness."""

import logging
from itertools import islice

from imagegen_broker.core.admission import Admission
from imagegen_broker.core.events import Payload, ReceivedFromClient, SendToClient
from imagegen_broker.core.outbox import Outbox
from imagegen_broker.core.records import Client, Principal, Request, State
from imagegen_broker.core.request_table import RequestTable
from imagegen_broker.core.statistics_cache import StatisticsCache
from imagegen_broker.core.transfers import Transfers
from imagegen_broker.scheduling.scheduler import Scheduler
from imagegen_protocol.errors import (
    CancelledError,
    OverloadedError,
)
from imagegen_protocol.messages import (
    Ack,
    BrokerHeartbeat,
    Cancel,
    Chunk,
    ClientHeartbeat,
    ClientMessage,
    Error,
    Fetch,
    Goodbye,
    Message,
    Progress,
    StatsQuery,
    Submit,
)

_MISSED_PER_INTERVAL = 8
"""Missed answers sent again to a client in each interval, in addition to one for each that it acknowledges."""


class ClientSessions:
    """The connected clients: registration, requests, acknowledgements, cancels and departures."""

    def __init__(
        self,
        table: RequestTable,
        scheduler: Scheduler,
        outbox: Outbox,
        transfers: Transfers,
        statistics: StatisticsCache,
        admission: Admission,
    ) -> None:
        self._table = table
        self._scheduler = scheduler
        self._outbox = outbox
        self._transfers = transfers
        self._statistics = statistics
        self._admission = admission
        self._settings = table.settings
        self.by_id: dict[bytes, Client] = {}
        """The clients by routing id."""
        self._principals: dict[bytes, Principal] = {}
        """Principals of the connected clients, by public key."""
        self._sessions = 0
        self._registered: list[Client] = []
        """Clients registered or unblocked since the last flush: the message that tries their connection is not
        sent yet."""
        self._contacted: list[Client] = []
        """Clients whose connections the last flush has tried."""

    def handle(self, event: ReceivedFromClient, now: float) -> None:
        """Handle a message of a client."""
        client_id, message, payload, key = event.client_id, event.message, event.payload, event.key
        client = self.by_id.get(client_id)
        if client is None:
            if isinstance(message, Goodbye):
                return
            if not self._has_place(key, message):
                self._reject_client(client_id, message)
                return
            client = self._register(client_id, key, now)
        client.last_received, client.max_priority = now, event.max_priority
        if (client.blocked or client.missed) and now >= client.retry_at:
            client.retry_at = now + self._settings.interval
            self._resend_missed(client, _MISSED_PER_INTERVAL, now)
        match message:
            case Submit():
                self._submit(client, message, payload, now)
            case Ack():
                self._acknowledge_all(client, message, now)
            case Fetch():
                frames = self._statistics.payload(message.payload_id)
                if frames is not None:
                    self._transfers.serve_client(client, frames, message)
                else:
                    self._transfers.on_client_fetch(client, message, now)
            case Chunk():
                self._transfers.on_client_chunk(client, message, payload, now)
            case ClientHeartbeat():
                client.window.confirm(message.token)
                if message.receive_maximum != client.receive_maximum:
                    client.receive_maximum = message.receive_maximum
                    self._table.limits.pause_or_resume(client)
            case StatsQuery(request_id=query_id):
                self._outbox.add(self._statistics.answer(client.id, query_id, now))
            case Cancel(request_id=request_id):
                self._cancel(client, request_id, now)
            case Goodbye():
                self.remove(client)

    # ---- sessions -------------------------------------------------------------------------------

    def tick(self, now: float, *, expire: bool) -> None:
        """Send a heartbeat to each client; with `expire`, remove those that have been silent for too long."""
        for client in list(self.by_id.values()):
            if expire and now - client.last_received > self._settings.client_silence:
                self._expire(client, now)
            else:
                self._send_heartbeat(client)

    def _expire(self, client: Client, now: float) -> None:
        """Remove a client that has been silent for too long.

        Its requests go back to the sessions that owned them before, if these still exist: a copy of SUBMIT that
        was delayed on an old connection of the same client must not take a request away with it.
        """
        for request in list(client.requests.values()):
            previous = request.previous_client
            if previous is not None and previous is not client and self.by_id.get(previous.id) is previous:
                self._table.transfer(request, previous)
                if request.state is State.DELIVERED:
                    self._resend_answer(request, now)
        if requests := len(client.requests):
            self._table.counters.clients_lost += 1
            self._outbox.log(logging.WARNING, "client lost", client=client.session, requests=requests)
        self.remove(client)

    def remove(self, client: Client) -> None:
        """Remove a client and all its requests."""
        for request in list(client.requests.values()):
            if request.state is not State.DELIVERED:
                self._table.counters.abandoned += 1
                self._table.log("request abandoned", request, request.worker)
            self._table.remove(request, acknowledged=False)
        del self.by_id[client.id]
        client.principal.clients -= 1
        if not client.principal.clients:
            self._principals.pop(client.key, None)
        self._scheduler.queue.resume(client)
        self._table.fetching.pop(client.id, None)
        self._outbox.discard_client(client.id)

    def begin_flush(self) -> bool:
        """Resume the clients whose connections accepted the messages of the last flush: they are reachable.

        Return whether clients wait for the next flush.
        """
        for client in self._contacted:
            if self.by_id.get(client.id) is client and not client.blocked:
                client.is_reachable = True
                self._table.limits.pause_or_resume(client)
                self._table.attach_held(client)
        if self._contacted or self._registered:
            self._contacted, self._registered = self._registered, []
        return bool(self._contacted)

    def send_failed(self, client_id: bytes, message: Message | bytes, answered_id: bytes | None) -> None:
        """Mark a client's connection as blocked; `answered_id` is the request whose answer it missed, if any."""
        client = self.by_id.get(client_id)
        if client is None:
            return
        client.blocked, client.is_reachable = True, False
        self._table.limits.pause_or_resume(client)
        if isinstance(message, Chunk | Progress):
            client.window.remove(message.token)
        request = None if answered_id is None else client.requests.get(answered_id)
        if request is not None and request.state is State.DELIVERED:
            client.missed[request.id] = None

    def _register(self, client_id: bytes, key: bytes, now: float) -> Client:
        self._sessions += 1
        client = Client(id=client_id, session=self._sessions, last_received=now, key=key)
        if key:
            client.principal = self._principals.setdefault(key, client.principal)
        client.principal.clients += 1
        client.downloads.configure(
            self._settings.interval, self._settings.liveness, self._settings.fetch_window_bytes
        )
        self.by_id[client_id] = client
        self._registered.append(client)
        self._table.limits.pause_or_resume(client)
        self._send_heartbeat(client)
        return client

    def _has_place(self, key: bytes, message: ClientMessage) -> bool:
        """Return whether one more client may be registered: a key leaves others as many places as it has.

        A client that has reconnected has a place of its own, because its earlier session may not have ended yet.
        """
        maximum = self._settings.max_clients * (2 if self._is_known(message) else 1)
        principal = self._principals.get(key)
        return maximum - len(self.by_id) > (0 if principal is None else principal.clients)

    def _reject_client(self, client_id: bytes, message: ClientMessage) -> None:
        """Reject a client beyond the maximum without storing anything about it."""
        text = f"the broker has {len(self.by_id)} clients, and no place for another one of this key"
        self._table.counters.rejected[OverloadedError.code] += 1
        request_id = message.request_id if isinstance(message, Submit | Cancel) else None
        self._log_rejection(None, request_id, OverloadedError.code)
        retry = self._settings.silence
        answer = Error(request_id=request_id, code=OverloadedError.code, message=text, retry_after_seconds=retry)
        self._outbox.add(SendToClient(client_id, answer))

    def _send_heartbeat(self, client: Client) -> None:
        heartbeat = BrokerHeartbeat(
            epoch=self._settings.epoch,
            session=client.session,
            interval_seconds=self._settings.interval,
            liveness=self._settings.liveness,
            fetch_window_bytes=self._transfers.window,
            receive_maximum=self._table.limits.maximum_of(client),
        )
        self._outbox.add(SendToClient(client.id, heartbeat))

    # ---- requests -------------------------------------------------------------------------------

    def _submit(self, client: Client, message: Submit, payload: Payload, now: float) -> None:
        known = self._table.requests.get(message.request_id)
        if known is not None:
            self._submitted_again(client, known, message, now)
            return
        if self._table.recent_ids.get(message.request_id):
            return  # acknowledged recently, by this session or an earlier one: this copy was delayed
        if (rejection := self._admission.rejection(client, message, payload, now)) is not None:
            self._table.counters.rejected[rejection.code] += 1
            self._log_rejection(client, message.request_id, rejection.code)
            self._outbox.add(SendToClient(client.id, rejection))
            return
        model = message.model or self._table.default_model
        deadline = None if message.timeout_seconds is None else now + message.timeout_seconds
        self._table.add(Request(message, client, model, payload, arrived_at=now, deadline=deadline))
        self._outbox.accept(client.id, message.request_id)

    def _is_known(self, message: ClientMessage) -> bool:
        """Return whether a message repeats a request that the broker holds: a client has reconnected."""
        return isinstance(message, Submit) and message.request_id in self._table.requests

    def _submitted_again(self, client: Client, request: Request, message: Submit, now: float) -> None:
        """Confirm a request that was sent again; if a newer session sent it, that session becomes its owner.

        A client opens a new session for each socket, so a copy from an earlier session is a delayed message.
        """
        if client.session < request.client.session:
            return
        if request.client is not client:
            self._table.transfer(request, client)
        self._table.resubmit(request, message)
        self._outbox.accept(client.id, request.id)
        if request.state is State.DELIVERED:
            self._resend_answer(request, now)

    def _acknowledge_all(self, client: Client, message: Ack, now: float) -> None:
        client.window.confirm(message.token)
        for request_id in message.request_ids:
            self._acknowledge(client, request_id)
        if client.missed:
            self._resend_missed(client, len(message.request_ids), now)

    def _acknowledge(self, client: Client, request_id: bytes) -> None:
        request = self._table.requests.get(request_id)
        if request is not None and request.client is client:
            self._table.counters.acknowledged += 1
            self._table.remove(request, acknowledged=True)

    def _cancel(self, client: Client, request_id: bytes, now: float) -> None:
        request = self._table.requests.get(request_id)
        answer = Error(request_id=request_id, code=CancelledError.code, message="the request was cancelled")
        if request is None:
            self._outbox.add(SendToClient(client.id, answer))
        elif request.client is client and request.state is not State.DELIVERED:
            self._table.fail(request, answer, now)

    # ---- answers --------------------------------------------------------------------------------

    def resend_unacknowledged(self, now: float) -> None:
        """Resend answers whose acknowledgement is overdue; the delay doubles with each resend."""
        for resends, waiting in enumerate(self._table.unacknowledged):
            timeout = 2 * self._settings.interval * 2**resends
            while waiting:
                request = next(iter(waiting.values()))
                if now - request.answered_at < timeout:
                    break
                self._resend_answer(request, now)

    def _resend_missed(self, client: Client, count: int, now: float) -> None:
        """Resend some missed answers: a message from the client shows that its connection may work again."""
        if client.blocked:
            client.blocked = False
            self._registered.append(client)
            self._send_heartbeat(client)
        for request_id in list(islice(client.missed, count)):
            del client.missed[request_id]
            self._resend_answer(client.requests[request_id], now)

    def _resend_answer(self, request: Request, now: float) -> None:
        """Resend the answer of a DELIVERED request, or send RESEND to the worker that holds it."""
        if request.client.blocked:
            request.client.missed[request.id] = None
        elif request.answer is not None:
            self._table.send_answer(request, request.answer)
        elif request.worker is not None:
            self._outbox.resend(request.worker.id, request.id)
        else:
            self._table.requeue(request, "answer_lost", now)
            return
        self._table.count_resend(request, now)

    def _log_rejection(self, client: Client | None, request_id: bytes | None, code: str) -> None:
        if self._settings.log_requests and request_id is not None:
            session = {} if client is None else {"client": client.session}
            fields = {"request_id": request_id.hex(), "outcome": code, **session}
            self._outbox.log(logging.WARNING, "request rejected", **fields)
