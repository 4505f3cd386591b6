"""Limits on connections: their number, request headers, rejected bodies, and the time to read a response."""

import asyncio
from collections.abc import Callable, Sized

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from imagegen_common.descriptors import UNLIMITED, raise_descriptor_limit
from imagegen_gateway.core.discard_rate import DiscardRate
from imagegen_gateway.core.write_progress import WriteProgress
from imagegen_gateway.errors import ApiError

HEADER_SECONDS = 15.0
"""Maximum time from the connection, or the first byte of a further request, to the end of the headers."""
MAX_HEADER_BYTES = 32 * 1024
READ_BYTES = 64 * 1024
"""Maximum number of bytes read at once; asyncio's 256 KiB delay other connections for longer."""
DISCARD_SECONDS = 30.0
"""Maximum time in which the rest of a body is dropped after its response."""
RESERVE = 64
"""Connections accepted beyond the limit, to answer 503 to requests and 200 to probes."""
_OTHER_FILES = 256
"""Open files other than connections."""
_PROBES = ("/healthz", "/metrics")


class TimeoutProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol, which closes connections of clients that send or read too slowly.

    After a response to the first part of a body, such as 429, it drops the rest slowly, and not for long.
    """

    _timeout: asyncio.TimerHandle | None = None
    _discarding: asyncio.TimerHandle | None = None
    """Ends the connection if the body of an answered request does not end."""
    _resuming: asyncio.TimerHandle | None = None
    _discard_rate = DiscardRate()
    """Shared by all connections."""
    on_open: Callable[[], object] = staticmethod(lambda: None)
    """Called once `connections` contains this connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start serving a connection, after its TLS handshake."""
        super().connection_made(transport)
        transport.max_size = READ_BYTES  # type: ignore[attr-defined]
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
        if self._discarding is not None:
            self._pace(len(data))

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timeouts."""
        self._cancel_timeout()
        for timer in (self._discarding, self._resuming):
            if timer is not None:
                timer.cancel()
        self._discarding = self._resuming = None
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Continue with the next request of the connection."""
        super().on_response_complete()
        self._update_timeout()
        if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
            self._discarding = self.loop.call_later(DISCARD_SECONDS, self.transport.abort)

    def _pace(self, size: int) -> None:
        """Pause after a part of the body of an answered request; end the pauses with the body."""
        assert self._discarding is not None, "the caller has checked it"
        if self.conn.their_state is not h11.SEND_BODY or self.conn.our_state is not h11.DONE:
            self._discarding.cancel()
            self._discarding = None
        elif not self.transport.is_closing():
            self.flow.pause_reading()
            pause = self._discard_rate.pause(size, self.loop.time())
            self._resuming = self.loop.call_later(pause, self.flow.resume_reading)

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


def permitted_connections(connections: int) -> int:
    """Raise the limit on open files for this number of connections; return the number that it permits."""
    others = RESERVE + _OTHER_FILES
    limit = raise_descriptor_limit(connections + others)
    return connections if limit == UNLIMITED else max(1, min(connections, limit - others))
