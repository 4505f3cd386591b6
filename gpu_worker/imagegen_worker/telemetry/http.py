"""The worker's HTTP server for `/metrics`, `/healthz` and `/readyz`, on its own threads."""

import logging
import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

_log = logging.getLogger(__name__)


def advertised_address(host: str, port: int) -> str:
    """Return HOST:PORT under which other hosts reach the server; the host name for a bind to all addresses."""
    if host in ("", "0.0.0.0", "::"):
        host = socket.gethostname()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), handler)


class HttpServer:
    """Serves a registry until `close`. `not_ready_reason` returns why the worker is not ready, or ""."""

    def __init__(
        self, host: str, port: int, registry: CollectorRegistry, not_ready_reason: Callable[[], str]
    ) -> None:
        """Bind and start. Raises OSError if the address cannot be bound."""
        attributes = {"registry": registry, "not_ready_reason": staticmethod(not_ready_reason)}
        self._server = _Server(host, port, type("Handler", (_Handler,), attributes))
        self.port: int = self._server.server_address[1]
        self._thread = Thread(target=self._server.serve_forever, args=(0.1,), name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    registry: CollectorRegistry
    not_ready_reason: Callable[[], str]
    timeout = 10
    server_version = "imagegen-worker"
    sys_version = ""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encoder, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._reply(200, content_type, encoder(self.registry))
        elif path == "/healthz":
            self._reply(200, "text/plain", b"ok\n")
        elif path == "/readyz":
            reason = self.not_ready_reason()
            self._reply(503 if reason else 200, "text/plain", f"{reason or 'ok'}\n".encode())
        else:
            self._reply(404, "text/plain", b"not found; try /metrics, /healthz or /readyz\n")

    do_HEAD = do_GET

    def _reply(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug("%s %s", self.address_string(), format % args)
