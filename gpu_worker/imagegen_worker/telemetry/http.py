"""The worker's HTTP server for `/metrics`, `/healthz` and `/readyz`, on its own threads."""

import socket
from collections.abc import Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from imagegen_common import http_server
from imagegen_common.http_server import Response, text_response


def advertised_address(host: str, port: int) -> str:
    """Return HOST:PORT under which other hosts reach the server; the host name for a bind to all addresses."""
    if host in ("", "0.0.0.0", "::"):
        host = socket.gethostname()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class HttpServer(http_server.HttpServer):
    """Serves a registry until `close`. `not_ready_reason` returns why the worker is not ready, or ""."""

    def __init__(
        self, host: str, port: int, registry: CollectorRegistry, not_ready_reason: Callable[[], str]
    ) -> None:
        """Bind and start. Raises OSError if the address cannot be bound."""
        self._registry = registry
        self._not_ready_reason = not_ready_reason
        super().__init__(host, port, self._respond, "imagegen-worker")

    def _respond(self, path: str, accept: str) -> Response:
        if path == "/metrics":
            encoder, content_type = choose_encoder(accept)
            return Response(200, content_type, encoder(self._registry))
        if path == "/healthz":
            return text_response(200, "ok\n")
        if path == "/readyz":
            reason = self._not_ready_reason()
            return text_response(503 if reason else 200, f"{reason or 'ok'}\n")
        return text_response(404, "not found; try /metrics, /healthz or /readyz\n")
