"""Targets of the HTTP servers of broker and worker: raw bytes of a connection."""

import io
import logging
from collections.abc import Iterator
from types import SimpleNamespace

from prometheus_client import CollectorRegistry

from imagegen_broker import http as broker_http
from imagegen_broker.server import Snapshot
from imagegen_common import http_server
from imagegen_worker.telemetry import http as worker_http
from tests.unit.broker.bench import Bench


class _Connection:
    """A socket that delivers some bytes and keeps the response."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.response = b""

    def makefile(self, *_):
        """Return the bytes as a file."""
        return io.BufferedReader(io.BytesIO(self._data))

    def sendall(self, data: bytes) -> None:
        """Keep a part of the response."""
        self.response += data

    def settimeout(self, _: float) -> None:
        """Do nothing: all bytes are there."""


def _snapshot(_: float) -> Snapshot:
    """Return a view of a broker with a worker."""
    bench = Bench().past_grace()
    bench.ready("w")
    return Snapshot.of(bench.core, bench.now)


def _handlers() -> Iterator[type[http_server.Handler]]:
    """Yield the handlers of the servers, which listen nowhere."""
    broker = broker_http.HttpServer.__new__(broker_http.HttpServer)
    broker._get_snapshot = _snapshot
    worker = worker_http.HttpServer.__new__(worker_http.HttpServer)
    worker._registry, worker._not_ready_reason = CollectorRegistry(), lambda: "test"
    for server in (broker, worker):
        yield type("Handler", (http_server.Handler,), {"respond": staticmethod(server._respond), "is_local": True})


def http_connection(data: bytes) -> None:
    """Serve a connection with these bytes."""
    for handler in _handlers():
        connection = _Connection(data)
        logging.disable(logging.CRITICAL)
        try:
            handler(connection, ("127.0.0.1", 1), SimpleNamespace())
        finally:
            logging.disable(logging.NOTSET)
        for line in connection.response.split(b"\r\n"):
            if line.startswith(b"HTTP/1.1 "):
                assert int(line[9:12]) in (100, 200, 400, 404, 414, 421, 431, 501, 503, 505), line
