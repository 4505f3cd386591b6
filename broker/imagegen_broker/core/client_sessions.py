"""`ClientSessions`: the messages of clients, and their liveness."""

import logging
from itertools import islice

from imagegen_broker.core.events import Payload, SendToClient
from imagegen_broker.core.outbox import Outbox
from imagegen_broker.core.records import Client, Request, State
from imagegen_broker.core.request_table import RequestTable
from imagegen_broker.core.statistics_cache import StatisticsCache
from imagegen_broker.core.transfers import Transfers
from imagegen_broker.scheduling.scheduler import Scheduler
from imagegen_protocol.errors import (
    CancelledError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
)
from imagegen_protocol.limits import MAX_BODY_BYTES, MAX_INLINE_BYTES, MAX_PAYLOAD_BYTES
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

_MIN_RETRY_SECONDS = 0.5
_MAX_RETRY_SECONDS = 60.0
_UNMEASURED_RETRY_SECONDS = 5.0
"""Advice to clients while no request has been answered yet."""
_MISSED_PER_INTERVAL = 8
"""Missed answers sent again to a client in each interval, in addition to one for each that it acknowledges."""
_MAX_LISTED_MODELS = 64
"""Models that an error lists; the size of its header is limited."""


class ClientSessions:
    """The connected clients: registration, requests, acknowledgements, cancels and departures."""

    def __init__(
        self,
        table: RequestTable,
        scheduler: Scheduler,
        outbox: Outbox,
        transfers: Transfers,
        statistics: StatisticsCache,
        dispatching_from: float,
    ) -> None:
        """`dispatching_from` is the time from which the broker knows the workers and their models."""
        self._table = table
        self._scheduler = scheduler
        self._outbox = outbox
        self._transfers = transfers
        self._statistics = statistics
        self._settings = table.settings
        self.by_id: dict[bytes, Client] = {}
        """The clients by routing id."""
        self._dispatching_from = dispatching_from
        self._sessions = 0
        self._registered: list[Client] = []
        """Clients registered or unblocked since the last flush: the message that tries their connection is not
        sent yet."""
        self._contacted: list[Client] = []
        """Clients whose connections the last flush has tried."""

    def handle(self, client_id: bytes, message: ClientMessage, payload: Payload, now: float) -> None:
        """Handle a message of a client."""
        client = self.by_id.get(client_id)
        if client is None:
            if isinstance(message, Goodbye):
                return
            if len(self.by_id) >= self._settings.max_clients and not self._is_known(message):
                self._reject_client(client_id, message)
                return
            client = self._register(client_id, now)
        client.last_received = now
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
                    self._table.pause_or_resume(client)
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
            if expire and now - client.last_received > self._settings.silence:
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
        self._scheduler.queue.resume(client.id)
        self._table.fetching.pop(client.id, None)
        self._outbox.discard_client(client.id)

    def begin_flush(self) -> None:
        """Dispatch requests of the clients whose connections have accepted what the last flush has sent."""
        for client in self._contacted:
            if self.by_id.get(client.id) is client and not client.blocked:
                client.is_reachable = True
                self._table.pause_or_resume(client)
                self._table.attach_held(client)
        self._contacted, self._registered = self._registered, []

    @property
    def needs_flush(self) -> bool:
        """Whether clients wait for the next flush."""
        return bool(self._contacted)

    def send_failed(self, client_id: bytes, message: Message | bytes, answered_id: bytes | None) -> None:
        """Mark a client's connection as blocked; `answered_id` is the request whose answer it missed, if any."""
        client = self.by_id.get(client_id)
        if client is None:
            return
        client.blocked, client.is_reachable = True, False
        self._table.pause_or_resume(client)
        if isinstance(message, Chunk | Progress):
            client.window.remove(message.token)
        request = None if answered_id is None else client.requests.get(answered_id)
        if request is not None and request.state is State.DELIVERED:
            client.missed[request.id] = None

    def _register(self, client_id: bytes, now: float) -> Client:
        self._sessions += 1
        client = Client(id=client_id, session=self._sessions, last_received=now)
        client.downloads.configure(
            self._settings.interval, self._settings.liveness, self._settings.fetch_window_bytes
        )
        self.by_id[client_id] = client
        self._registered.append(client)
        self._table.pause_or_resume(client)
        self._send_heartbeat(client)
        return client

    def _reject_client(self, client_id: bytes, message: ClientMessage) -> None:
        """Reject a client beyond the maximum without storing anything about it."""
        text = f"the broker has {len(self.by_id)} clients, which is the maximum"
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
            receive_maximum=self._table.maximum_of(client),
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
        if (rejection := self._rejection(client, message, payload, now)) is not None:
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
        """Confirm a request that was sent again; a later session that knows its id becomes its owner.

        A client has a new session for each socket, so a copy from an earlier session was delayed on the way.
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
        """Send answers again that have not been acknowledged in time; the time doubles with each resend."""
        for resends, waiting in enumerate(self._table.unacknowledged):
            timeout = 2 * self._settings.interval * 2**resends
            while waiting:
                request = next(iter(waiting.values()))
                if now - request.answered_at < timeout:
                    break
                self._resend_answer(request, now)

    def _resend_missed(self, client: Client, count: int, now: float) -> None:
        """Send some missed answers again, since a message of the client shows that its connection may work."""
        if client.blocked:
            client.blocked = False
            self._registered.append(client)
            self._send_heartbeat(client)
        for request_id in list(islice(client.missed, count)):
            del client.missed[request_id]
            self._resend_answer(client.requests[request_id], now)

    def _resend_answer(self, request: Request, now: float) -> None:
        """Send the answer of a DELIVERED request again, or ask the worker that holds it to do so."""
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

    # ---- rejections -----------------------------------------------------------------------------

    def _rejection(self, client: Client, message: Submit, payload: Payload, now: float) -> Error | None:
        """Return the ERROR with which a new request is rejected, or None if it is accepted."""
        text = _payload_problem(message, payload)
        if text is not None:
            return Error(request_id=message.request_id, code=InvalidRequestError.code, message=text)
        if message.model is not None and self._is_unknown(message.model, now):
            text = self._unknown_model(message.model)
            return Error(request_id=message.request_id, code=ModelNotFoundError.code, message=text)
        if (text := self._overload(client, sum(message.frame_bytes) or sum(map(len, payload)))) is not None:
            return Error(
                request_id=message.request_id,
                code=OverloadedError.code,
                message=text,
                retry_after_seconds=self._retry_seconds(),
            )
        return None

    def _is_unknown(self, model: str, now: float) -> bool:
        """Return whether no worker has served a model since the broker started."""
        pool = self._scheduler.pool
        return now >= self._dispatching_from and len(pool) > 0 and not pool.has_served(model)

    def _unknown_model(self, model: str) -> str:
        models = self._scheduler.pool.models()
        served = ", ".join(models[:_MAX_LISTED_MODELS])
        if len(models) > _MAX_LISTED_MODELS:
            served += f" and {len(models) - _MAX_LISTED_MODELS} more"
        return f"no worker serves the model {model!r}; served are: {served}"

    def reject_unknown_models(self, now: float) -> None:
        """Fail queued requests whose model no worker has served with `model_not_found`.

        They were accepted before the broker could know."""
        queue = self._scheduler.queue
        for model in queue.models():
            if model is None or not self._is_unknown(model, now):
                continue
            text = self._unknown_model(model)
            for request in list(queue.in_order(model)):
                answer = Error(request_id=request.id, code=ModelNotFoundError.code, message=text)
                self._table.fail(request, answer, now)

    def _overload(self, client: Client, size: int) -> str | None:
        """Return which maximum one more request of `size` bytes would exceed, or None."""
        settings, table = self._settings, self._table
        if len(table.requests) >= settings.max_requests:
            return f"the broker holds {len(table.requests)} requests, which is the maximum"
        if table.bytes + size > settings.max_bytes:
            return f"the broker holds {table.bytes} bytes of requests, at most {settings.max_bytes} are allowed"
        if len(client.requests) >= settings.max_requests_per_client:
            return f"this client has {len(client.requests)} requests here, which is the maximum for one client"
        if client.held_bytes + size > settings.max_bytes_per_client:
            allowed = f"at most {settings.max_bytes_per_client} are allowed"
            return f"this client has {client.held_bytes} bytes of requests here, {allowed}"
        return None

    def _retry_seconds(self) -> float:
        rate = self._table.answer_rate.per_second
        if rate <= 0:
            return _UNMEASURED_RETRY_SECONDS
        # One request fits after one answer; a tenth of the backlog leaves room for the other clients that retry.
        wait = max(1.0, len(self._table.requests) / 10) / rate
        return min(_MAX_RETRY_SECONDS, max(_MIN_RETRY_SECONDS, wait))

    def _log_rejection(self, client: Client | None, request_id: bytes | None, code: str) -> None:
        if self._settings.log_requests and request_id is not None:
            session = {} if client is None else {"client": client.session}
            fields = {"request_id": request_id.hex(), "outcome": code, **session}
            self._outbox.log(logging.INFO, "request rejected", **fields)


def _payload_problem(message: Submit, payload: Payload) -> str | None:
    """Return what is wrong with the payload of a SUBMIT, or with the sizes of one that is fetched; else None."""
    sizes = message.frame_bytes or list(map(len, payload))
    if not sizes:
        return "a submit needs a body, inline or described by frame_bytes"
    if message.frame_bytes and payload:
        return f"the payload has frame_bytes and {len(payload)} inline frames; it is either fetched or inline"
    if sizes[0] > MAX_BODY_BYTES:
        return f"the body is {sizes[0]} bytes long, at most {MAX_BODY_BYTES} are allowed"
    if sum(sizes) > MAX_PAYLOAD_BYTES or sum(sizes) == 0:
        return f"the payload is {sum(sizes)} bytes long, from 1 to {MAX_PAYLOAD_BYTES} are allowed"
    if payload and sum(sizes) > MAX_INLINE_BYTES:
        return f"the inline payload is {sum(sizes)} bytes long, at most {MAX_INLINE_BYTES} are allowed"
    return None
