"""`python -m imagegen_protocol.conformance` accepts imagegen's programs, and finds faults injected into them."""

import contextlib
import subprocess
import threading

import msgpack
import pytest

from imagegen_broker import server
from imagegen_broker.core.client_sessions import ClientSessions
from imagegen_broker.core.records import SendWindow, Settings
from imagegen_broker.core.request_table import RequestTable
from imagegen_client import Client, ImagegenError
from imagegen_client.receipts import Receipts
from imagegen_protocol import decode_from_client
from imagegen_protocol.conformance.__main__ import main
from imagegen_protocol.conformance.images import png
from imagegen_protocol.limits import VERSION
from tests.e2e.conformance import TOOL, results
from tests.e2e.conftest import BROKER, SIMULATED
from tests.raw import Peers, ready


@contextlib.contextmanager
def requests(endpoint):
    """A client that sends requests of each kind and ignores their outcomes."""
    stop = threading.Event()
    with Client(endpoint) as client:

        def plain():
            client.submit("a red circle", timeout_seconds=300, preview=True).result()

        def with_image():
            client.submit("a red circle", image=png(200)).result()

        def cancelled():
            job = client.submit("a red circle")
            stop.wait(1.0)
            job.cancel()
            job.result()

        def repeat(function):
            while not stop.is_set():
                with contextlib.suppress(ImagegenError):
                    function()
                stop.wait(0.01)

        functions = (plain, with_image, cancelled, lambda: client.stats(timeout=30))
        threads = [threading.Thread(target=repeat, args=(each,)) for each in functions]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            client.close()
            for thread in threads:
                thread.join()


@contextlib.contextmanager
def running_broker():
    """A broker in a thread of this process."""
    settings = Settings(epoch=b"e" * 16, interval=0.2, liveness=10)
    broker = server.Server(settings, "tcp://127.0.0.1:0", "tcp://127.0.0.1:0")
    thread = threading.Thread(target=broker.run)
    thread.start()
    try:
        yield broker
    finally:
        broker.stop()
        thread.join()


def test_our_broker_follows_the_protocol(fleet):
    fleet.start_broker(*BROKER)
    place = fleet.brokers["broker"]
    done = subprocess.run(
        [*TOOL, "broker", place.frontend, place.backend], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout
    assert len(results(done.stdout)) > 35


def test_our_client_follows_the_protocol(start_tool):
    tool = start_tool("client")
    with requests(tool.endpoint):
        status, table = tool.finish()
    assert status == 0, table
    assert "not tested" not in results(table).values(), table


def test_our_worker_follows_the_protocol(fleet, start_tool):
    tool = start_tool("worker")
    fleet.spawn("worker", ["imagegen-worker", "--broker", tool.endpoint, "--name", "w", "--gpu", "0", *SIMULATED])
    status, table = tool.finish()
    assert status == 0, table
    assert "not tested" not in results(table).values(), table


def ignore(*_, **__):
    """Do nothing."""


def restart_payload(table, request):
    """Discard the received part of a payload."""
    request.download = None
    fetch_payload(table, request)


fetch_payload = RequestTable._fetch_payload


def accept_any_version(header):
    """Decode a header as if it had the right version."""
    return decode_from_client(msgpack.packb({**msgpack.unpackb(header), "v": VERSION}))


@pytest.mark.parametrize(
    ("requirement", "place", "name", "fault"),
    [
        ("R-2.4", RequestTable, "_fetch_payload", restart_payload),
        ("R-2.7", SendWindow, "add", ignore),
        ("R-4.6", ClientSessions, "_submitted_again", ignore),
        ("R-9.2", server, "decode_from_client", accept_any_version),
    ],
)
def test_a_fault_of_a_broker_is_found(monkeypatch, capsys, requirement, place, name, fault):
    monkeypatch.setattr(place, name, fault)
    with running_broker() as broker:
        endpoints = [broker.frontend_endpoint, broker.backend_endpoint]
        assert main(["broker", *endpoints, "--only", requirement, "--timeout", "5"]) == 1
    assert results(capsys.readouterr().out)[requirement] == "fail"


def test_a_fault_of_a_client_is_found(monkeypatch, start_tool):
    monkeypatch.setattr(Receipts, "acks", lambda receipts: [])
    tool = start_tool("client", "--only", "R-4.7", "--timeout", "5")
    with requests(tool.endpoint):
        status, table = tool.finish()
    assert (status, results(table)) == (1, {"R-4.7": "fail"})


def test_a_fault_of_a_worker_is_found(start_tool):
    """The worker registers and ignores its requests."""
    tool = start_tool("worker", "--only", "R-5.11", "--timeout", "5")
    with contextlib.closing(Peers()) as peers:
        ready(peers(tool.endpoint))
        status, table = tool.finish()
    assert (status, results(table)) == (1, {"R-5.11": "fail"})


def test_the_tool_ends_if_no_broker_answers(capsys):
    assert main(["broker", "tcp://127.0.0.1:9", "tcp://127.0.0.1:9", "--timeout", "0.5"]) == 1
    assert results(capsys.readouterr().out) == {"R-4.1": "fail"}
