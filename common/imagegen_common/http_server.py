"""The HTTP server of the daemons, for metrics and probes: a thread for each of a limited number of connections."""

import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

MAX_CONNECTIONS = 64
"""Maximum number of connections. One more ends the oldest, so that probes are answered whatever others do."""
CONNECTION_SECONDS = 60.0
"""Maximum duration of a connection, however slowly its requests arrive."""
_CHECK_SECONDS = 0.1
_READ_SECONDS = 10
"""Maximum time without any byte."""

_log = logging.getLogger("imagegen.http")


class Response(NamedTuple):
    """A response to GET."""

    status: int
    content_type: str
    body: bytes


def text_response(status: int, text: str) -> Response:
    """Return a response of plain text."""
    return Response(status, "text/plain", text.encode())


Respond = Callable[[str, str], Response]
"""Returns the response for a path and an Accept header; called on the thread of the connection."""


class HttpServer:
    """Serves GET requests on daemon threads until `close`.

    On a loopback address it answers only requests to `localhost` or a loopback address: a web page can make its
    own name lead there, and read the answers.
    """

    def __init__(self, host: str, port: int, respond: Respond, program: str) -> None:
        """Bind. Raises OSError if the address can't be bound."""
        fields = {"respond": staticmethod(respond), "is_local": is_local_name(host), "server_version": program}
        self._server = _Server(host, port, type("Handler", (Handler,), fields))
        bound_host, self.port = self._server.server_address[:2]
        self.address = f"{bound_host!s}:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_CHECK_SECONDS,), name="http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._opened: dict[socket.socket, float] = {}
        """When each connection was accepted, the oldest first."""
        self._lock = threading.Lock()
        super().__init__((host, port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a new thread; end the oldest one if there are too many."""
        with self._lock:
            if len(self._opened) >= MAX_CONNECTIONS:
                self._end(next(iter(self._opened)))
            self._opened[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._lock:
            self._opened.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """End the connections that last too long."""
        with self._lock:
            started = time.monotonic() - CONNECTION_SECONDS
            for connection in [each for each, at in self._opened.items() if at < started]:
                self._end(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log that a connection failed; its client may have left."""
        _log.debug("connection failed", exc_info=True)

    def _end(self, connection: socket.socket) -> None:
        """Let the thread of a connection read its end. The caller holds the lock."""
        del self._opened[connection]
        with suppress(OSError):  # the client has closed it
            connection.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD of one connection."""

    respond: Respond
    is_local: bool
    timeout = _READ_SECONDS
    sys_version = ""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Send the response for a path."""
        if self.is_local and not is_local_name(self.headers.get("Host", "localhost")):
            response = text_response(421, "this address is served as localhost or 127.0.0.1 only\n")
        else:
            response = self.respond(self.path.partition("?")[0], self.headers.get("Accept", ""))
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Log at debug level instead of writing to stderr."""
        _log.debug("%s %s", self.address_string(), format % args)


def is_local_name(host: str) -> bool:
    """Return whether a host, with or without a port, is `localhost` or a loopback address."""
    name = host.removeprefix("[").partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host
    if host.count(":") > 1 and not host.startswith("["):
        name = host  # an IPv6 address without a port
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
