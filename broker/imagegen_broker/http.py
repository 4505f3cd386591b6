"""The broker's HTTP: `/stats`, `/metrics`, `/healthz`, `/readyz`, on separate threads."""

import ipaddress
import logging
from collections.abc import Callable
from concurrent.futures import CancelledError
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from imagegen_broker.metrics import BrokerCollector
from imagegen_broker.server import Snapshot
from imagegen_protocol.statistics import to_json

log = logging.getLogger("imagegen.broker.http")

_TIMEOUT_SECONDS = 2.0
"""Time after which a loop that does not respond counts as unhealthy."""


class HttpServer:
    """Serves snapshots of the broker on daemon threads until `close`."""

    def __init__(self, host: str, port: int, get_snapshot: Callable[[float], Snapshot]) -> None:
        """Bind. Raises OSError if the address can't be bound."""
        fields = {"get_snapshot": staticmethod(get_snapshot), "is_local": is_local_name(host)}
        self._server = ThreadingHTTPServer((host, port), type("Handler", (_Handler,), fields))
        self._server.daemon_threads = True
        bound_host, bound_port = self._server.server_address[:2]
        self.address = f"{bound_host!s}:{bound_port}"
        self._thread = Thread(target=self._server.serve_forever, name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    get_snapshot: Callable[[float], Snapshot]
    is_local: bool
    timeout = 10
    server_version = "imagegen-broker"
    sys_version = ""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.is_local and not is_local_name(self.headers.get("Host", "localhost")):
            # A web page can make its own name lead to this address, and read the answer.
            self._reply(421, "text/plain", "this address is served as localhost or 127.0.0.1 only\n")
            return
        path = self.path.partition("?")[0]
        if path not in ("/stats", "/metrics", "/healthz", "/readyz"):
            self._reply(404, "text/plain", "not found; try /stats, /metrics, /healthz or /readyz\n")
            return
        try:
            snapshot = self.get_snapshot(_TIMEOUT_SECONDS)
        except (TimeoutError, CancelledError):
            self._reply(503, "text/plain", "the broker's loop does not respond\n")
            return
        if path == "/stats":
            self._reply(200, "application/json", to_json(snapshot.statistics) + b"\n")
        elif path == "/metrics":
            registry = CollectorRegistry(auto_describe=False)
            registry.register(BrokerCollector(snapshot))
            encoder, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._reply(200, content_type, encoder(registry))
        elif path == "/healthz" or snapshot.ready:
            self._reply(200, "text/plain", "ok\n")
        else:
            self._reply(503, "text/plain", "no worker is registered yet\n")

    do_HEAD = do_GET

    def _reply(self, status: int, content_type: str, body: str | bytes) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("%s %s", self.address_string(), format % args)


def is_local_name(host: str) -> bool:
    """Return whether a host, with or without a port, is `localhost` or a loopback address."""
    name = host.removeprefix("[").partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host
    if host.count(":") > 1 and not host.startswith("["):
        name = host  # an IPv6 address without a port
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
