"""How many connections there may be, and how long one may take to say what it wants."""

import asyncio
import resource
from collections.abc import Callable, Sized

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from imagegen_gateway.errors import ApiError

HEADER_SECONDS = 15.0
"""From the first byte that may be one of a request, or the handshake, to the end of its headers."""
MAX_HEADER_BYTES = 32 * 1024
RESERVE = 64
"""Connections beyond the bound that are still read: most are told to come back, probes are answered."""
_OTHER_FILES = 256
_PROBES = ("/healthz", "/metrics")


class PatientProtocol(H11Protocol):
    """HTTP/1.1 for peers who come to the point: one that does not send its headers in time is hung up on."""

    max_connections = 1024
    _too_late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, unless there are far too many already."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections + RESERVE:
            transport.abort()
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._forget()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Go on with what was sent meanwhile."""
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        """Let the time for headers run while there are some to come."""
        coming = self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None
        if not coming:
            self._forget()
        elif self._too_late is None:
            self._too_late = self.loop.call_later(HEADER_SECONDS, self._hang_up)

    def _hang_up(self) -> None:
        self._too_late = None
        if not self.transport.is_closing():
            self.transport.close()

    def _forget(self) -> None:
        if self._too_late is not None:
            self._too_late.cancel()
            self._too_late = None


class Room:
    """Answers 503 while there are too many connections, but for who asks whether the gateway lives."""

    def __init__(self, app: ASGIApp, connections: Callable[[], Sized], most: int) -> None:
        self._app = app
        self._connections = connections
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        full = scope["type"] == "http" and len(self._connections()) > self._most
        if not full or scope["path"] in _PROBES:
            await self._app(scope, receive, send)
            return
        message = f"this gateway has {self._most} connections, and takes no more now (--max-connections)"
        headers = {"Connection": "close"}
        error = ApiError(503, "too_many_connections", message, retry_after=2, headers=headers)
        await error.response()(scope, receive, send)


def allow_files(connections: int) -> None:
    """Raise the bound on open files, as far as it may be, so that so many connections fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + RESERVE + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
