"""The broker's HTTP: `/stats`, `/metrics`, `/healthz`, `/readyz`, on separate threads."""

from collections.abc import Callable
from concurrent.futures import CancelledError

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from imagegen_broker.metrics import BrokerCollector
from imagegen_broker.server import Snapshot
from imagegen_common import http_server
from imagegen_common.http_server import Response, text_response
from imagegen_protocol.statistics import to_json

_TIMEOUT_SECONDS = 2.0
"""Time after which a loop that does not respond counts as unhealthy."""


class HttpServer(http_server.HttpServer):
    """Serves snapshots of the broker on daemon threads until `close`."""

    def __init__(self, host: str, port: int, get_snapshot: Callable[[float], Snapshot]) -> None:
        """Bind. Raises OSError if the address can't be bound."""
        self._get_snapshot = get_snapshot
        super().__init__(host, port, self._respond, "imagegen-broker")

    def _respond(self, path: str, accept: str) -> Response:
        if path not in ("/stats", "/metrics", "/healthz", "/readyz"):
            return text_response(404, "not found; try /stats, /metrics, /healthz or /readyz\n")
        try:
            snapshot = self._get_snapshot(_TIMEOUT_SECONDS)
        except (TimeoutError, CancelledError):
            return text_response(503, "the broker's loop does not respond\n")
        if path == "/stats":
            return Response(200, "application/json", to_json(snapshot.statistics) + b"\n")
        if path == "/metrics":
            registry = CollectorRegistry(auto_describe=False)
            registry.register(BrokerCollector(snapshot))
            encoder, content_type = choose_encoder(accept)
            return Response(200, content_type, encoder(registry))
        if path == "/healthz" or snapshot.ready:
            return text_response(200, "ok\n")
        return text_response(503, "no worker is registered yet\n")
