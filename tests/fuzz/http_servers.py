"""Targets of the HTTP servers of broker and worker: raw bytes of a connection."""

import io
import logging
from types import SimpleNamespace

from prometheus_client import CollectorRegistry

from imagegen_broker import http as broker_http
from imagegen_broker.server import Snapshot
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


class _BrokerHandler(broker_http._Handler):
    is_local = True

    @staticmethod
    def get_snapshot(_: float) -> Snapshot:
        """Return a view of a broker with a worker."""
        bench = Bench().past_grace()
        bench.ready("w")
        return Snapshot.of(bench.core, bench.now)


class _WorkerHandler(worker_http._Handler):
    registry = CollectorRegistry()

    @staticmethod
    def not_ready_reason() -> str:
        """Return a reason."""
        return "test"


def http_connection(data: bytes) -> None:
    """Serve a connection with these bytes."""
    for handler in (_BrokerHandler, _WorkerHandler):
        connection = _Connection(data)
        logging.disable(logging.CRITICAL)
        try:
            handler(connection, ("127.0.0.1", 1), SimpleNamespace())
        finally:
            logging.disable(logging.NOTSET)
        for line in connection.response.split(b"\r\n"):
            if line.startswith(b"HTTP/1.1 "):
                assert int(line[9:12]) in (100, 200, 400, 404, 414, 421, 431, 501, 503, 505), line
