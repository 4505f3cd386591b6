"""The HTTP server: uvicorn with systemd notifications, and a lock on the state folder."""

import asyncio
import fcntl
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn

from imagegen_common.addresses import ConfigError, NotBoundError
from imagegen_common.notify import SystemdNotifier
from imagegen_gateway.app import make_app
from imagegen_gateway.config import Settings
from imagegen_gateway.connection_limits import MAX_HEADER_BYTES, HeaderTimeoutProtocol, raise_file_limit

SHUTDOWN_GRACE_SECONDS = 5
"""Time after `drain_timeout` in which cancelled requests can send their error responses."""


class _Server(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        stopping: asyncio.Event,
        on_start: Callable[[], object],
        notifier: SystemdNotifier,
    ) -> None:
        super().__init__(config)
        self._stopping = stopping
        self._on_start = on_start
        self._notifier = notifier

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_start()
            self._notifier.ready("serving")

    async def on_tick(self, counter: int) -> bool:
        # uvicorn calls this in the serving event loop, so a blocked loop stops the watchdog notifications.
        self._notifier.tick(time.monotonic(), self._status)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._notifier.stopping("stopping")
        await super().shutdown(sockets)

    def _status(self) -> str:
        open_ = len(self.server_state.connections)
        return f"{open_} connections, {self.server_state.total_requests} requests"

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        # Ends the event streams; uvicorn waits for all other requests.
        asyncio.get_running_loop().call_soon_threadsafe(self._stopping.set)


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises `NotBoundError`."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        words = f"--http: can't bind {host}:{port}: {error.strerror or error}"
        raise NotBoundError(words, error.errno) from error


@contextmanager
def lock_state_folder(folder: Path) -> Iterator[None]:
    """Lock the state folder during the block, so that one gateway runs its jobs. Raises `ConfigError`."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"--state-folder: can't use {folder}: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise ConfigError(f"--state-folder: another gateway uses {folder}") from error
    try:
        yield
    finally:
        os.close(handle)


def serve(settings: Settings, listener: socket.socket, on_start: Callable[[], object]) -> bool:
    """Serve until SIGTERM or SIGINT; return False if the server could not start.

    `on_start` is called when the server accepts requests.
    """
    stopping = asyncio.Event()
    raise_file_limit(settings.max_connections)
    app = make_app(settings, stopping)
    config = uvicorn.Config(
        app,
        http=type("Protocol", (HeaderTimeoutProtocol,), {"max_connections": settings.max_connections}),
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
    server = _Server(config, stopping, on_start, notifier)
    app.state.connections = server.server_state.connections
    # uvicorn raises the signal again after its shutdown; ignored, so that the process exits with status 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run([listener])
    notifier.close()
    return server.started
