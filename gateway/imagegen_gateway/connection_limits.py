"""Limits on the number of connections, on request headers, and on the time to read a response."""

import asyncio
import resource
from collections.abc import Callable, Sized

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from imagegen_gateway.core.write_progress import WriteProgress
from imagegen_gateway.errors import ApiError

HEADER_SECONDS = 15.0
"""Maximum time from the connection, or the first byte of a further request, to the end of the headers."""
MAX_HEADER_BYTES = 32 * 1024
RESERVE = 64
"""Connections accepted beyond the limit, to answer 503 to requests and 200 to probes."""
_OTHER_FILES = 256
"""Open files other than connections."""
_PROBES = ("/healthz", "/metrics")


class TimeoutProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol, which closes connections of clients that send or read too slowly."""

    _timeout: asyncio.TimerHandle | None = None
    on_open: Callable[[], object] = staticmethod(lambda: None)
    """Called once `connections` contains this connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start serving a connection, after its TLS handshake."""
        super().connection_made(transport)
        self.on_open()
        self._writing = WriteProgress()
        self._update_timeout()

    def resume_writing(self) -> None:
        """Continue a response after the client has read most of the sent bytes."""
        self._writing.note_drained()
        super().resume_writing()

    def abort_if_stalled(self, now: float) -> None:
        """Abort the connection if the client does not read its response; `now` in monotonic seconds."""
        if self._writing.is_stalled(self.transport.get_write_buffer_size(), now):
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Process received bytes."""
        super().data_received(data)
        self._update_timeout()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timeout."""
        self._cancel_timeout()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Continue with the next request of the connection."""
        super().on_response_complete()
        self._update_timeout()

    def _update_timeout(self) -> None:
        """Start the timeout if headers are incomplete; cancel it otherwise."""
        expecting_headers = self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None
        if not expecting_headers:
            self._cancel_timeout()
        elif self._timeout is None:
            self._timeout = self.loop.call_later(HEADER_SECONDS, self._on_timeout)

    def _on_timeout(self) -> None:
        self._timeout = None
        if not self.transport.is_closing():
            self.transport.close()

    def _cancel_timeout(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None


class ConnectionLimiter:
    """Middleware that answers 503 while there are too many connections, except to probes."""

    def __init__(self, app: ASGIApp, connections: Callable[[], Sized], max_connections: int) -> None:
        self._app = app
        self._connections = connections
        self._max_connections = max_connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an HTTP request with 503 above the limit of connections; probes always pass."""
        full = scope["type"] == "http" and len(self._connections()) > self._max_connections
        if not full or scope["path"] in _PROBES:
            await self._app(scope, receive, send)
            return
        message = f"this gateway has its maximum of {self._max_connections} connections (--max-connections)"
        headers = {"Connection": "close"}
        error = ApiError(503, "too_many_connections", message, retry_after=2, headers=headers)
        await error.response()(scope, receive, send)


def raise_file_limit(connections: int) -> int:
    """Raise the limit on open files for this number of connections; return the number that it permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + RESERVE + _OTHER_FILES
    limit = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        soft = limit
    if soft == resource.RLIM_INFINITY:
        return connections
    return max(1, min(connections, soft - RESERVE - _OTHER_FILES))
