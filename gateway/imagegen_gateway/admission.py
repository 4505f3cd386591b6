"""Admission of requests with a body: key, rate and number in flight are checked before the body is read."""

import sqlite3
from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imagegen_gateway.access import ADMITTED, authenticate, get_services
from imagegen_gateway.core.byte_budget import ByteBudget
from imagegen_gateway.errors import ApiError, storage_failed
from imagegen_gateway.keys import ApiKey
from imagegen_gateway.paced_response import PacedResponse
from imagegen_gateway.response_headers import set_rate_limit
from imagegen_gateway.services import Services


class RequestMemory:
    """The memory of one request, counted until its response has been sent: the body, and a long response."""

    def __init__(self, services: Services, api_key: ApiKey) -> None:
        self._budget: ByteBudget = services.body_bytes
        self._refusals = services.metrics.refusals
        self._key_id = api_key.id
        self._taken = 0
        self._received = 0

    def reserve(self, size: int) -> None:
        """Reserve memory. Raises `ApiError` 429 or 503 if the key or all keys hold too much."""
        match self._budget.take(self._key_id, size):
            case "key":
                self._refusals.labels(reason="bytes").inc()
                message = f"the requests of this key in flight have their maximum of {self._budget.per_key} bytes"
                raise ApiError(429, "too_many_bytes", message, retry_after=1)
            case "total":
                message = f"the requests in flight have their maximum of {self._budget.total} bytes"
                raise ApiError(503, "overloaded", message, retry_after=1)
            case None:
                self._taken += size

    def receive(self, size: int) -> None:
        """Reserve memory for received bytes beyond those reserved before. Raises `ApiError`."""
        self._received += size
        if self._received > self._taken:
            self.reserve(self._received - self._taken)

    def hold(self, size: int) -> None:
        """Count memory that is already in use, even above the limit, against later requests of the key."""
        self._budget.add(self._key_id, size)
        self._taken += size

    def free(self) -> None:
        """Free the memory."""
        self._budget.give_back(self._key_id, self._taken)
        self._taken = 0


@dataclass(frozen=True, slots=True)
class Admission:
    """An admitted request: its key and its memory."""

    api_key: ApiKey
    memory: RequestMemory


def report_rate(scope: Scope, services: Services, api_key: ApiKey) -> None:
    """Report the rate limit of a key in the headers of the response."""
    if (bucket := services.rate(api_key)) is not None:
        set_rate_limit(scope, bucket.per_minute, bucket.remaining, bucket.reset_seconds)


def get_admission(request: Request) -> Admission:
    """Return the admission of a POST request."""
    admission: Admission = request.scope["state"][ADMITTED]
    return admission


class HeldResponse(PacedResponse):
    """A long response to a request without a body, whose memory counts for its key until it has been sent."""

    def __init__(self, services: Services, api_key: ApiKey, content: bytes) -> None:
        """Create a response of JSON. Raises `ApiError` 429 or 503 if the key or all keys hold too much memory."""
        self._memory = RequestMemory(services, api_key)
        self._memory.reserve(len(content))
        super().__init__(content, {"content-type": "application/json"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._memory.free()


class AdmissionMiddleware:
    """Middleware that admits POST requests, and counts each one until its response has been sent."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reject a POST request beyond the limits of its key; pass other requests on."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        services = get_services(request)
        try:
            api_key = await authenticate(request, services)
            repeated = await self._repeats(request, services, api_key)
            try:
                services.admit(api_key, repeated=repeated)
            finally:
                report_rate(scope, services, api_key)
            memory = RequestMemory(services, api_key)
            memory.reserve(min(_content_length(request), self._max_body_bytes))
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        except sqlite3.Error as error:
            services.metrics.storage_failures.inc()
            await storage_failed("access its database", error).response()(scope, receive, send)
            return

        async def counted_receive() -> Message:
            message = await receive()
            memory.receive(len(message.get("body", b"")))
            return message

        scope["state"][ADMITTED] = Admission(api_key, memory)
        # Nothing was awaited since `admit`, so no other request has passed the same check in between.
        services.in_flight.begin(api_key.id)
        try:
            await self._app(scope, counted_receive, send)
        finally:
            services.in_flight.end(api_key.id)
            memory.free()

    @staticmethod
    async def _repeats(request: Request, services: Services, api_key: ApiKey) -> bool:
        """Return whether the request repeats one that created a job, which may still be in flight."""
        key = request.headers.get("idempotency-key")
        return key is not None and await services.job_store.by_idempotency_key(api_key.id, key) is not None


def _content_length(request: Request) -> int:
    # The server has rejected any other Content-Length than a number.
    return int(request.headers.get("content-length", "0"))
