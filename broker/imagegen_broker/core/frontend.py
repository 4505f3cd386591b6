"""What the broker does with clients' messages."""

import logging
from itertools import islice
from typing import Any

from imagegen_broker.core.ledger import Ledger
from imagegen_broker.core.records import Client, Payload, Request, State, ToClient
from imagegen_protocol import errors
from imagegen_protocol.limits import MAX_BODY_BYTES, MAX_FRAME_BYTES, MAX_FRAMES
from imagegen_protocol.messages import (
    Ack,
    BrokerHeartbeat,
    Cancel,
    ClientMessage,
    Error,
    Goodbye,
    Submit,
)

_MIN_RETRY_SECONDS = 0.5
_MAX_RETRY_SECONDS = 60.0
_UNMEASURED_RETRY_SECONDS = 5.0
"""While nothing has been answered yet."""
_MISSED_A_TIME = 8
"""Missed answers that a client which is heard gets each interval, beside one for each that it acknowledges."""
_MODELS_TOLD = 64
"""Models that an error lists; its header has a bound."""


class Frontend:
    """Clients: registration, requests, acknowledgements, cancels, farewells."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._sessions = 0

    def handle(self, client_id: bytes, message: ClientMessage, payload: Payload, now: float) -> None:
        """Take one message of a client. A StatsQuery is answered by the broker itself, not here."""
        client = self._ledger.clients.get(client_id)
        if client is None:
            if isinstance(message, Goodbye):
                return
            if len(self._ledger.clients) >= self._ledger.settings.max_clients:
                self._turn_away(client_id, message)
                return
            client = self._register(client_id, now)
        client.heard = now
        if (client.blocked or client.missed) and now >= client.probe_at:
            client.probe_at = now + self._ledger.settings.interval
            self._try_missed(client, _MISSED_A_TIME, now)
        match message:
            case Submit():
                self._submit(client, message, payload, now)
            case Ack(request_ids=ids):
                for request_id in ids:
                    self._acknowledge(client, request_id)
                if client.missed:
                    self._try_missed(client, len(ids), now)
            case Cancel(request_id=request_id):
                self._cancel(client, request_id, now)
            case Goodbye():
                self.drop(client)

    def _turn_away(self, client_id: bytes, message: ClientMessage) -> None:
        """Refuse a client for which there is no place; nothing is kept of it."""
        text = f"the broker has {len(self._ledger.clients)} clients, as many as it may"
        code = errors.OverloadedError.code
        self._ledger.counters.rejected[code] += 1
        request_id = message.request_id if isinstance(message, Submit | Cancel) else None
        retry = self._ledger.settings.silence
        self._note_refusal(None, request_id, code)
        answer = Error(request_id=request_id, code=code, message=text, retry_after_seconds=retry)
        self._ledger.send(ToClient(client_id, answer))

    def heartbeat(self, client: Client) -> None:
        """Send a client the broker's heartbeat."""
        settings = self._ledger.settings
        beat = BrokerHeartbeat(
            epoch=settings.epoch,
            session=client.session,
            interval_seconds=settings.interval,
            liveness=settings.liveness,
        )
        self._ledger.send(ToClient(client.id, beat))

    def tick(self, now: float, *, slept: bool) -> None:
        """Give up dead clients, unless the broker `slept` and may not have read all; beat for the others."""
        for client in list(self._ledger.clients.values()):
            if now - client.heard > self._ledger.settings.silence and not slept:
                self._ledger.counters.clients_lost += 1
                self._ledger.note(
                    logging.WARNING, "client lost", client=client.session, requests=len(client.requests)
                )
                self.drop(client)
            else:
                self.heartbeat(client)

    def revoked(self, client_id: bytes) -> None:
        """Forget a client, if it is one, whose key is no longer allowed."""
        if (client := self._ledger.clients.get(client_id)) is not None:
            self.drop(client)

    def drop(self, client: Client) -> None:
        """Forget a client and give up whatever it has not received."""
        for request in list(client.requests.values()):
            if request.state is not State.DELIVERED:
                self._ledger.counters.abandoned += 1
                self._ledger.note_request("request abandoned", request, request.worker)
            self._ledger.forget(request, acknowledged=False)
        del self._ledger.clients[client.id]

    def _register(self, client_id: bytes, now: float) -> Client:
        self._sessions += 1
        client = Client(id=client_id, session=self._sessions, heard=now)
        self._ledger.clients[client_id] = client
        self.heartbeat(client)
        return client

    # ---- requests -------------------------------------------------------------------------------

    def _submit(self, client: Client, message: Submit, payload: Payload, now: float) -> None:
        known = self._ledger.requests.get(message.request_id)
        if known is not None:
            self._submitted_again(client, known, message, now)
            return
        if self._ledger.tombstones.get(message.request_id) == client.id:
            return  # acknowledged lately: a copy that was late on the way
        refusal = self._refusal(client, message, payload, now)
        if refusal is not None:
            self._ledger.counters.rejected[refusal["code"]] += 1
            self._note_refusal(client, message.request_id, refusal["code"])
            self._ledger.send(ToClient(client.id, Error(request_id=message.request_id, **refusal)))
            return
        request = Request(
            id=message.request_id,
            client=client,
            model=message.model or self._ledger.default_model,
            priority=message.priority,
            progress=message.progress or message.preview,
            preview=message.preview,
            traceparent=message.traceparent,
            images=message.images,
            payload=payload,
            size=sum(len(frame) for frame in payload),
            arrived=now,
            deadline=None if message.timeout_seconds is None else now + message.timeout_seconds,
        )
        self._ledger.accept(request)
        self._ledger.deadlines.add(request, len(self._ledger.requests))
        self._ledger.confirm(client.id, request.id)

    def _note_refusal(self, client: Client | None, request_id: bytes | None, code: str) -> None:
        if self._ledger.settings.log_requests and request_id is not None:
            session = {} if client is None else {"client": client.session}
            self._ledger.note(
                logging.INFO, "request refused", request_id=request_id.hex(), outcome=code, **session
            )

    def _submitted_again(self, client: Client, request: Request, message: Submit, now: float) -> None:
        """The client sends a request again, or another client takes it over: the id is a capability."""
        if request.client is not client:
            self._ledger.hand_over(request, client)
        request.progress, request.preview = message.progress or message.preview, message.preview
        self._ledger.confirm(client.id, request.id)
        if request.state is State.QUEUED:
            self._ledger.follow(request)
        if request.state is State.DELIVERED:
            self.send_answer_again(request, now)

    def _try_missed(self, client: Client, count: int, now: float) -> None:
        """A client whose connection took nothing is heard, or reads: try with a few of the answers it missed."""
        client.blocked = False
        for request_id in list(islice(client.missed, count)):
            del client.missed[request_id]
            self.send_answer_again(client.requests[request_id], now)

    def not_taken(self, client_id: bytes, answers: bytes | None) -> None:
        """Learn that a client's connection takes nothing; `answers`: the request whose answer it missed."""
        client = self._ledger.clients.get(client_id)
        if client is None:
            return
        client.blocked = True
        request = None if answers is None else client.requests.get(answers)
        if request is not None and request.state is State.DELIVERED:
            client.missed[request.id] = None

    def send_answer_again(self, request: Request, now: float) -> None:
        """Send a DELIVERED answer once more: the broker's own at once, a worker's through its holder."""
        if request.client.blocked:
            request.client.missed[request.id] = None
            self._ledger.sent_again(request, now)
            return
        if request.answer is not None:
            self._ledger.pass_on(request, request.answer)
        elif request.worker is not None:
            self._ledger.ask_again(request.worker, request.id)
        else:
            # Whoever held the answer is gone; what was not acknowledged is made again.
            self._ledger.requeue(request, "answer_lost", now)
            return
        self._ledger.sent_again(request, now)

    def _refusal(self, client: Client, message: Submit, payload: Payload, now: float) -> dict[str, Any] | None:
        """Return the fields of the ERROR with which a new request is refused, or None."""
        if not payload:
            return {"code": "invalid_request", "message": "a submit needs a body frame after the header"}
        if len(payload) >= MAX_FRAMES:
            return {"code": "invalid_request", "message": f"at most {MAX_FRAMES} frames are allowed"}
        if len(payload[0]) > MAX_BODY_BYTES:
            text = f"the body is {len(payload[0])} bytes long, at most {MAX_BODY_BYTES} are allowed"
            return {"code": "invalid_request", "message": text}
        if any(len(frame) > MAX_FRAME_BYTES for frame in payload):
            return {"code": "invalid_request", "message": f"a frame may be {MAX_FRAME_BYTES} bytes long"}
        if message.model is not None and self._is_unknown(message.model, now):
            return {"code": "model_not_found", "message": self._served(message.model)}
        return self._overload(client, sum(len(frame) for frame in payload))

    def _is_unknown(self, model: str, now: float) -> bool:
        """Say whether no worker has served the model, and the broker has been there long enough to know."""
        placement = self._ledger.placement
        return not (now < self._ledger.listening_until or placement.empty or placement.has_served(model))

    def _served(self, model: str) -> str:
        models = self._ledger.placement.models()
        served = ", ".join(models[:_MODELS_TOLD])
        if len(models) > _MODELS_TOLD:
            served += f" and {len(models) - _MODELS_TOLD} more"
        return f"no worker serves the model {model!r}; served are: {served}"

    def refuse_unknown_models(self, now: float) -> None:
        """Answer the requests that were taken in before the broker knew that nobody serves their model."""
        for model in self._ledger.queue.models():
            if model is None or not self._is_unknown(model, now):
                continue
            text = self._served(model)
            for request in list(self._ledger.queue.in_order(model)):
                answer = Error(request_id=request.id, code="model_not_found", message=text)
                self._ledger.fail(request, answer, now)

    def _overload(self, client: Client, size: int) -> dict[str, Any] | None:
        settings = self._ledger.settings
        held = len(self._ledger.requests)
        own = len(client.requests)
        if held >= settings.max_requests:
            text = f"the broker holds {held} requests, as many as it may"
        elif self._ledger.bytes + size > settings.max_bytes:
            text = f"the broker holds {self._ledger.bytes} bytes of requests, {settings.max_bytes} are allowed"
        elif own >= settings.max_requests_per_client:
            text = f"this client has {own} requests here, as many as one client may"
        elif client.held_bytes + size > settings.max_bytes_per_client:
            limit = settings.max_bytes_per_client
            text = f"this client has {client.held_bytes} bytes of requests here, {limit} are allowed"
        else:
            return None
        rate = self._ledger.rate.per_second
        # One place is free after one answer; a tenth of the backlog gives the herd room.
        wait = _UNMEASURED_RETRY_SECONDS if rate <= 0 else max(1.0, held / 10) / rate
        retry = min(_MAX_RETRY_SECONDS, max(_MIN_RETRY_SECONDS, wait))
        return {"code": errors.OverloadedError.code, "message": text, "retry_after_seconds": retry}

    def _acknowledge(self, client: Client, request_id: bytes) -> None:
        request = self._ledger.requests.get(request_id)
        if request is None or request.client is not client:
            return
        self._ledger.counters.acknowledged += 1
        self._ledger.forget(request, acknowledged=True)

    def _cancel(self, client: Client, request_id: bytes, now: float) -> None:
        request = self._ledger.requests.get(request_id)
        answer = Error(request_id=request_id, code="cancelled", message="the request was cancelled")
        if request is None:
            self._ledger.send(ToClient(client.id, answer))
        elif request.client is client and request.state is not State.DELIVERED:
            self._ledger.fail(request, answer, now)
