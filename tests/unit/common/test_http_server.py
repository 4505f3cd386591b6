"""The HTTP server of the daemons: limits on connections and time, and no answers for foreign names."""

import http.client
import socket

import pytest

from imagegen_common import http_server
from imagegen_common.http_server import HttpServer, text_response
from imagegen_worker.telemetry import http as worker_http


@pytest.fixture
def server():
    server = HttpServer("127.0.0.1", 0, lambda path, accept: text_response(200, path), "test")
    yield server
    server.close()


def get(server, path="/", host="localhost"):
    """Return the status and the text of a response."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request("GET", path, headers={"Host": host})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def connect(server, data=b""):
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    connection.sendall(data)
    return connection


def test_silent_connections_do_not_keep_others_out(server):
    silent = [connect(server, b"GET / HT") for _ in range(3 * http_server.MAX_CONNECTIONS)]
    assert get(server, "/healthz") == (200, "/healthz")
    assert len(server._server._opened) <= http_server.MAX_CONNECTIONS
    assert silent[0].recv(1) == b"", "the oldest was ended"
    for connection in silent:
        connection.close()


def test_a_request_that_arrives_byte_by_byte_has_a_limit(server, monkeypatch):
    monkeypatch.setattr(http_server, "CONNECTION_SECONDS", 0.05)
    with connect(server, b"GET / HT") as connection:
        assert connection.recv(1) == b"", "long before the 10 s without any byte"


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8080", "127.0.0.1:8080", "[::1]:8080", "::1", "127.3.2.1"]
)
def test_this_machine_is_answered(server, host):
    assert get(server, host=host)[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "10.0.0.1", "localhost.evil.example", ""])
def test_a_name_that_a_web_page_has_made_lead_here_is_rejected(server, host):
    assert get(server, host=host)[0] == 421


def test_the_worker_rejects_foreign_names_too():
    server = worker_http.HttpServer("127.0.0.1", 0, None, lambda: "")
    try:
        assert get(server, "/readyz") == (200, "ok\n")
        assert get(server, "/readyz", host="evil.example")[0] == 421
    finally:
        server.close()
