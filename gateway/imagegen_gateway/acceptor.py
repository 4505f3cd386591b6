"""Accepting connections: counted from the first moment, also while their TLS handshake runs."""

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable, Sized

from imagegen_common.logs import log

_log = logging.getLogger("imagegen.gateway")

HANDSHAKE_SECONDS = 5.0
"""Maximum duration of a TLS handshake."""
TLS_CLOSE_SECONDS = 5.0
"""Maximum time for the other side to confirm the end of a TLS connection."""
RETRY_SECONDS = 1.0
"""Time without new connections after the system has refused one."""
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
"""Errors of `accept` that persist until resources are free; others concern one connection."""


class Acceptor:
    """Accepts the connections of one listening socket, up to a maximum; further ones are closed at once.

    asyncio's own server counts no connection before the end of its TLS handshake, and waits 60 s for that.
    """

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[Callable[[], object]], asyncio.Protocol],
        *,
        tls: ssl.SSLContext | None,
        connections: Sized,
        max_connections: int,
    ) -> None:
        """Start accepting.

        `make_protocol` returns a protocol that calls its argument when it joins `connections`.
        """
        self._listener = listener
        self._make_protocol = make_protocol
        self._tls = tls
        self._connections = connections
        self._max_connections = max_connections
        self._tasks: set[asyncio.Task[None]] = set()
        self._opening = 0
        listener.setblocking(False)
        self._accepting = asyncio.create_task(self._run(), name="accept")

    async def close(self) -> None:
        """Stop accepting, and abort the handshakes that have not ended."""
        tasks = [self._accepting, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    log(_log, logging.ERROR, "connections can not be accepted", error=error.strerror)
                    await asyncio.sleep(RETRY_SECONDS)
                continue
            await asyncio.sleep(0)  # other work of the event loop, however many connections wait
            if self._opening + len(self._connections) >= self._max_connections:
                accepted.close()
                continue
            self._opening += 1
            task = asyncio.create_task(self._open(accepted))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _open(self, accepted: socket.socket) -> None:
        """Give a connection its protocol, after its TLS handshake."""
        opened = False

        def on_open() -> None:
            nonlocal opened
            opened = True
            self._opening -= 1

        timeouts = (
            {}
            if self._tls is None
            else {
                "ssl_handshake_timeout": HANDSHAKE_SECONDS,
                "ssl_shutdown_timeout": TLS_CLOSE_SECONDS,
            }
        )
        try:
            # A response is two small writes or more; asyncio sets the option for sockets of its own only.
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self._make_protocol(on_open), accepted, ssl=self._tls, **timeouts
            )
        except OSError as error:  # also of a handshake that fails or takes too long
            log(_log, logging.DEBUG, "connection failed", error=str(error) or type(error).__name__)
            accepted.close()
        finally:
            if not opened:
                self._opening -= 1
