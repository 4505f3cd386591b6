"""`Admission`: which new requests are rejected, and why."""

from imagegen_broker.core.events import Payload
from imagegen_broker.core.records import Client
from imagegen_broker.core.request_table import RequestTable
from imagegen_broker.scheduling.scheduler import Scheduler
from imagegen_protocol.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
)
from imagegen_protocol.limits import MAX_BODY_BYTES, MAX_INLINE_BYTES, MAX_PAYLOAD_BYTES
from imagegen_protocol.messages import Error, Submit

_CERTAIN_SHARE = 0.75
"""Share of the predicted seconds that a request surely needs."""
_MIN_RETRY_SECONDS = 0.5
_MAX_RETRY_SECONDS = 60.0
_UNMEASURED_RETRY_SECONDS = 5.0
"""Advice to clients while no request has been answered yet."""
_MAX_LISTED_MODELS = 64
"""Models that an error lists; the size of its header is limited."""


class Admission:
    """Checks requests against the broker's limits and its models."""

    def __init__(self, table: RequestTable, scheduler: Scheduler, dispatching_from: float) -> None:
        """Create the checks. Before `dispatching_from`, a new broker does not reject unknown models.

        Until then, workers that serve them may not have registered yet.
        """
        self._table = table
        self._scheduler = scheduler
        self._settings = table.settings
        self._dispatching_from = dispatching_from

    def rejection(self, client: Client, message: Submit, payload: Payload, now: float) -> Error | None:
        """Return the ERROR with which a new request is rejected, or None if it is accepted."""
        sizes = message.frame_bytes or [len(frame) for frame in payload]
        size = sum(sizes)
        text = _payload_problem(message, payload, sizes, size) or _priority_problem(message, client)
        if text is not None:
            return Error(request_id=message.request_id, code=InvalidRequestError.code, message=text)
        if message.model is not None and self.is_unknown(message.model, now):
            text = self._unknown_model(message.model)
            return Error(request_id=message.request_id, code=ModelNotFoundError.code, message=text)
        left = message.timeout_seconds
        if left is not None and (text := self.lateness(message, message.model, left, now)) is not None:
            return Error(request_id=message.request_id, code=DeadlineExceededError.code, message=text)
        if (text := self._overload(client, message.model, size)) is not None:
            return Error(
                request_id=message.request_id,
                code=OverloadedError.code,
                message=text,
                retry_after_seconds=self._retry_seconds(message.model),
            )
        return None

    def lateness(self, submit: Submit, model: str | None, left: float, now: float) -> str | None:
        """Return why no worker can finish a request in the seconds that are left; None if one might.

        A prediction may be wrong by a quarter.
        """
        if now < self._dispatching_from:
            return None
        needed = self._scheduler.estimates.least_seconds(submit, model or self._table.default_model)
        if needed is None or needed * _CERTAIN_SHARE <= left:
            return None
        return f"the request needs about {needed:.3g} s on the fastest worker, {max(0.0, left):.3g} s are left"

    def is_unknown(self, model: str, now: float) -> bool:
        """Return whether the model can be rejected: no worker has served it since the broker started."""
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

        They were accepted before the workers had time to register."""
        queue = self._scheduler.queue
        for model in queue.models():
            if model is None or not self.is_unknown(model, now):
                continue
            text = self._unknown_model(model)
            for request in list(queue.in_order(model)):
                answer = Error(request_id=request.id, code=ModelNotFoundError.code, message=text)
                self._table.fail(request, answer, now)

    def _overload(self, client: Client, model: str | None, size: int) -> str | None:
        """Return a description of the limit that one more request of `size` bytes would exceed, or None."""
        settings, table = self._settings, self._table
        if len(table.requests) >= settings.max_requests:
            return f"the broker holds {len(table.requests)} requests, which is the maximum"
        if table.bytes + size > settings.max_bytes:
            return f"the broker holds {table.bytes} bytes of requests, at most {settings.max_bytes} are allowed"
        held = client.principal
        if held.requests >= settings.max_requests_per_client:
            return f"this client has {held.requests} requests here, which is the maximum for one client"
        if held.held_bytes + size > settings.max_bytes_per_client:
            allowed = f"at most {settings.max_bytes_per_client} are allowed"
            return f"this client has {held.held_bytes} bytes of requests here, {allowed}"
        wait, limit = self._wait_seconds(model), settings.max_queue_seconds
        if limit and wait is not None and wait > limit:
            return f"requests for this model wait for about {wait:.3g} s, at most {limit:.3g} s are allowed"
        return None

    def _wait_seconds(self, model: str | None) -> float | None:
        """Return the predicted seconds until the waiting requests for a model are finished; None if unknown."""
        model = model or self._table.default_model
        estimates = self._scheduler.estimates
        speed = estimates.speed(model) if estimates.is_measured(model) else 0.0
        return self._scheduler.queue.seconds(model) / speed if speed > 0 else None

    def _retry_seconds(self, model: str | None) -> float:
        wait = self._wait_seconds(model)
        if wait:
            return min(_MAX_RETRY_SECONDS, max(_MIN_RETRY_SECONDS, wait / 10))
        rate = self._table.answer_rate.per_second
        if rate <= 0:
            return _UNMEASURED_RETRY_SECONDS
        # One request fits after one answer; a tenth of the backlog leaves room for the other clients that retry.
        wait = max(1.0, len(self._table.requests) / 10) / rate
        return min(_MAX_RETRY_SECONDS, max(_MIN_RETRY_SECONDS, wait))


def _priority_problem(message: Submit, client: Client) -> str | None:
    if message.priority <= client.max_priority:
        return None
    return f"priority: the maximum of this client's key is {client.max_priority}, got {message.priority}"


def _payload_problem(message: Submit, payload: Payload, sizes: list[int], size: int) -> str | None:
    """Return what is wrong with the payload of a SUBMIT, or with the sizes of one that is fetched; else None."""
    if not sizes:
        return "a submit needs a body, inline or described by frame_bytes"
    if message.frame_bytes and payload:
        return f"the payload has frame_bytes and {len(payload)} inline frames; it is either fetched or inline"
    if sizes[0] > MAX_BODY_BYTES:
        return f"the body is {sizes[0]} bytes long, at most {MAX_BODY_BYTES} are allowed"
    if not 0 < size <= MAX_PAYLOAD_BYTES:
        return f"the payload is {size} bytes long, from 1 to {MAX_PAYLOAD_BYTES} are allowed"
    if payload and size > MAX_INLINE_BYTES:
        return f"the inline payload is {size} bytes long, at most {MAX_INLINE_BYTES} are allowed"
    return None
