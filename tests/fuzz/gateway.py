"""Targets of the gateway: JSON, forms, whole requests, workers' metrics and URLs."""

import asyncio
import math
import tempfile
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException

from imagegen_client import OverloadedError
from imagegen_client.requests import build
from imagegen_gateway import bodies
from imagegen_gateway.app import make_app
from imagegen_gateway.config import Settings
from imagegen_gateway.core.addresses import check_webhook_url
from imagegen_gateway.core.json_bounds import MAX_TEXT, JsonError, JsonTooLargeError, parse_json
from imagegen_gateway.core.limits import UNLIMITED
from imagegen_gateway.gpu_metrics import parse
from tests.fuzz.choices import Choices
from tests.fuzz.wire import check_finite

BOUNDARY = b"b0undary"
_FORM = b"multipart/form-data; boundary=" + BOUNDARY
_CONTENT_TYPES = (
    b"application/json",
    _FORM,
    b"multipart/form-data",
    b"text/plain",
    b"application/x-www-form-urlencoded",
)
ROUTES = (
    ("POST", "/v1/images/generations"),
    ("POST", "/v1/images/edits"),
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs"),
    ("DELETE", "/v1/jobs/x"),
    ("GET", "/v1/jobs/x/events"),
    ("GET", "/v1/models/x"),
    ("GET", "/v1/files/x"),
    ("GET", "/"),
    ("OPTIONS", "/v1/jobs"),
)
_HEADERS = (
    b"host",
    b"origin",
    b"authorization",
    b"idempotency-key",
    b"content-type",
    b"accept",
    b"range",
    b"if-none-match",
    b"cookie",
    b"content-encoding",
)


def json_body(data: bytes) -> None:
    """Parse a JSON body within limits."""
    try:
        value = parse_json(data, ("image",))
    except (JsonError, JsonTooLargeError) as error:
        str(error).encode()
        return
    check_finite(value)
    assert not isinstance(value, str) or len(value) <= MAX_TEXT


def form_body(data: bytes) -> None:
    """Parse a multipart body whose content type is hostile, too."""
    choices = Choices(data)
    own = choices.boolean()
    content_type = b"multipart/form-data; " + choices.bytes(choices.integer(0, 40)) if own else _FORM
    headers = Headers(raw=[(b"content-type", content_type)])
    try:
        form = bodies._parse_form(headers, choices.rest())
    except MultiPartException as error:
        error.message.encode()
        return
    assert len(form.multi_items()) <= bodies.MAX_FILES + bodies.MAX_FIELDS


def worker_metrics(data: bytes) -> None:
    """Read the metrics of a worker."""
    with suppress(ValueError):
        assert all(math.isfinite(number) for number in parse(data.decode(), "w").values())


def webhook_url(data: bytes) -> None:
    """Check the URL of a webhook."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        url = check_webhook_url(text, ())
    except ValueError as error:
        str(error).encode("utf-8", "surrogateescape")
        return
    parts = urlsplit(url)
    assert parts.scheme in ("http", "https")
    assert parts.hostname
    assert url.isascii()


# ---- whole requests --------------------------------------------------------------------------------------


class _Clients:
    """Clients of a fleet that is overloaded: a valid request is validated as the client does, and rejected."""

    async def close(self) -> None:
        """Do nothing."""

    async def close_idle(self) -> None:
        """Do nothing."""

    async def require_workers(self) -> None:
        """Do nothing: there are workers."""

    async def stats(self) -> None:
        """Reject."""
        raise OverloadedError("test", retry_after_seconds=1.0)

    async def known_stats(self) -> None:
        """Return None: no broker answers."""

    @contextmanager
    def client(self, _key: str):
        """Return the client."""
        yield self

    def submit(self, prompt: str, *, progress: bool, preview: bool, **options):
        """Validate a request, and reject it."""
        build(prompt, options, request_id=bytes(16), seed=1, progress=progress, preview=preview)
        raise OverloadedError("test", retry_after_seconds=1.0)


class Gateway:
    """The application of a gateway without a fleet, in an event loop of its own."""

    def __init__(self, keys_required: bool) -> None:
        self._keys_required = keys_required
        self.key = ""
        """An API key, if keys are required."""
        self._folder = tempfile.TemporaryDirectory(prefix="imagegen-fuzz-")
        self._loop = asyncio.new_event_loop()
        self._stack = self._open()
        self._app = self._loop.run_until_complete(self._stack.__aenter__())

    @asynccontextmanager
    async def _open(self):
        settings = Settings(
            brokers=("ipc:///nonexistent/broker",),
            state_folder=Path(self._folder.name),
            keys_required=self._keys_required,
        )
        app = make_app(settings, asyncio.Event())
        async with app.router.lifespan_context(app):
            services = app.state.services
            await services.clients.close()
            services.clients = _Clients()
            services.jobs.start = lambda job: None
            if self._keys_required:
                self.key, _ = await services.api_keys.add("test", UNLIMITED, 0.0)
            yield app

    def request(self, method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]], body: bytes):
        """Send a request; return the status and the body of the response."""
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query,
            "headers": [(b"content-length", str(len(body)).encode()), *headers],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
            "state": {},
        }
        return self._loop.run_until_complete(asyncio.wait_for(self._exchange(scope, body), 10))

    def close(self) -> None:
        """Close the services and the event loop."""
        self._loop.run_until_complete(self._stack.__aexit__(None, None, None))
        self._loop.close()
        self._folder.cleanup()

    async def _exchange(self, scope, body):
        parts, status = [], 0
        received = asyncio.Event()

        async def receive():
            if received.is_set():
                await asyncio.sleep(3600)
            received.set()
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            nonlocal status
            status = message.get("status", status)
            parts.append(message.get("body", b""))

        await self._app(scope, receive, send)
        return status, b"".join(parts)


@cache
def gateway(keys_required: bool) -> Gateway:
    """Return a gateway of this process."""
    return Gateway(keys_required)


def close() -> None:
    """Close the gateways of this process."""
    for keys_required in (False, True) if gateway.cache_info().currsize else ():
        gateway(keys_required).close()
    gateway.cache_clear()


def gateway_body(data: bytes) -> None:
    """Send a body to a route of the gateway: whatever it is, the response is an error of the sender."""
    choices = Choices(data)
    method, path = choices.pick(ROUTES[:3])
    content_type = choices.pick(_CONTENT_TYPES)
    headers = [(b"host", b"127.0.0.1:8000"), (b"content-type", content_type)]
    status, body = gateway(False).request(method, path, b"", headers, choices.rest())
    _check(status, body)


def gateway_head(data: bytes) -> None:
    """Send a request with a hostile path, query and headers."""
    choices = Choices(data)
    server = gateway(choices.boolean())
    method, path = choices.pick(ROUTES)
    own = choices.bytes(choices.integer(0, 20)).decode("utf-8", "replace")
    # The server rejects other characters than these before the application.
    query = bytes(each for each in choices.bytes(choices.integer(0, 30)) if 0x21 <= each <= 0x7E)
    headers = [] if choices.boolean() else [(b"host", b"localhost")]
    if server.key:
        headers.append((b"authorization", b"Bearer " + server.key.encode()))
    while not choices.is_empty and len(headers) < 8:
        value = bytes(each for each in choices.bytes(choices.integer(0, 60)) if each >= 32 and each != 127)
        headers.append((choices.pick(_HEADERS), value.strip()))
    status, body = server.request(method, path.replace("x", own) if own else path, query, headers, b"{}")
    _check(status, body)


def _check(status: int, body: bytes) -> None:
    """Raise an exception if a response is a failure of the gateway."""
    # 503: the rejection of a valid request by `_Clients`.
    assert 200 <= status < 500 or status == 503, (status, body)
    if status >= 400 and body.startswith(b"{"):
        assert parse_json(body)["error"]["message"]
