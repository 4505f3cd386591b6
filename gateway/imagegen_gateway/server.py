"""The HTTP server: uvicorn with systemd notifications."""

import asyncio
import gc
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

import uvicorn

from imagegen_common.addresses import NotBoundError
from imagegen_common.logs import log
from imagegen_common.notify import SystemdNotifier
from imagegen_common.signals import ignore_hangup
from imagegen_gateway.acceptor import Acceptor
from imagegen_gateway.app import make_app
from imagegen_gateway.config import Settings
from imagegen_gateway.connection_limits import MAX_HEADER_BYTES, RESERVE, TimeoutProtocol, permitted_connections
from imagegen_gateway.log_limits import limit_log_lines

_log = logging.getLogger("imagegen.gateway")

BACKLOG = 256
"""Maximum number of connections that wait to be accepted."""
TICKS_PER_CHECK = 20
"""Number of ticks (2 s) between two checks for clients that do not read their responses."""
SWITCH_SECONDS = 0.001
"""Time after which a thread passes the lock of the interpreter on."""
SHUTDOWN_GRACE_SECONDS = 5
"""Time after `drain_timeout` in which cancelled requests can send their error responses."""


class _Server(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        listener: socket.socket,
        max_connections: int,
        stopping: asyncio.Event,
        on_start: Callable[[], object],
        notifier: SystemdNotifier,
    ) -> None:
        super().__init__(config)
        self._listener = listener
        self._max_connections = max_connections
        self._stopping = stopping
        self._on_start = on_start
        self._notifier = notifier
        self._acceptor: Acceptor | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # Without sockets of its own, uvicorn opens the services only.
        await super().startup([])
        if self.started:
            self._acceptor = Acceptor(
                self._listener,
                self._make_protocol,
                tls=self.config.ssl,
                connections=self.server_state.connections,
                max_connections=self._max_connections + RESERVE,
            )
            # What exists now exists until the end; the collector need not visit it in each of its pauses.
            gc.collect()
            gc.freeze()
            self._on_start()
            self._notifier.ready("serving")

    def _make_protocol(self, on_open: Callable[[], object]) -> asyncio.Protocol:
        protocol = TimeoutProtocol(self.config, self.server_state, self.lifespan.state)
        protocol.on_open = on_open
        return protocol

    async def on_tick(self, counter: int) -> bool:
        # uvicorn calls this in the serving event loop, so a blocked loop stops the watchdog notifications.
        now = time.monotonic()
        self._notifier.tick(now, self._status)
        if counter % TICKS_PER_CHECK == 0:
            for connection in list(self.server_state.connections):
                if isinstance(connection, TimeoutProtocol):
                    connection.abort_if_stalled(now)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._notifier.stopping("stopping")
        if self._acceptor is not None:
            await self._acceptor.close()
        self._listener.close()
        await super().shutdown([])

    def _status(self) -> str:
        open_ = len(self.server_state.connections)
        return f"{open_} connections, {self.server_state.total_requests} requests"

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn stops waiting for requests only at a second SIGINT.
        self.force_exit |= self.should_exit
        super().handle_exit(sig, frame)
        # Ends the event streams; uvicorn waits for all other requests.
        asyncio.get_running_loop().call_soon_threadsafe(self._stopping.set)


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises `NotBoundError`."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        words = f"--http: can't bind {host}:{port}: {error.strerror or error}"
        raise NotBoundError(words, error.errno, port) from error


def serve(settings: Settings, listener: socket.socket, on_start: Callable[[], object]) -> bool:
    """Serve until SIGTERM or SIGINT; return False if it could not start, or a second signal forced its end.

    `on_start` is called when the server accepts requests.
    """
    stopping = asyncio.Event()
    max_connections = permitted_connections(settings.max_connections)
    if max_connections < settings.max_connections:
        log(
            _log,
            logging.WARNING,
            "maximum number of connections lowered to the limit on open files",
            max_connections=max_connections,
        )
        settings = replace(settings, max_connections=max_connections)
    limit_log_lines()
    # The event loop waits so long for each thread that parses a body; the default is 5 ms.
    sys.setswitchinterval(SWITCH_SECONDS)
    app = make_app(settings, stopping)
    config = uvicorn.Config(
        app,
        http=TimeoutProtocol,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout) + SHUTDOWN_GRACE_SECONDS,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )
    notifier = SystemdNotifier(os.environ)
    server = _Server(config, listener, max_connections, stopping, on_start, notifier)
    app.state.connections = server.server_state.connections
    # uvicorn raises the signal again after its shutdown; ignored, so that the process exits with status 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    ignore_hangup(_log)
    server.run()
    notifier.close()
    if server.force_exit:
        log(_log, logging.CRITICAL, "second signal received, exiting")
    return server.started and not server.force_exit
