"""The daemons as systemd sees them: real processes that are told where it listens."""

import contextlib
import socket

import pytest

from imagegen_client import Client
from tools.fleet import Fleet

HANGING = ("--backend", "simulated", "--simulated-batch-seconds", "0", "--simulated-fail", "hang-on:hang")


class Systemd:
    """A socket like systemd's own."""

    def __init__(self, folder):
        self.address = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.settimeout(60)

    def environment(self, watchdog=0.4):
        return {"NOTIFY_SOCKET": self.address, "WATCHDOG_USEC": str(int(watchdog * 1e6))}

    def message(self):
        """Return the lines of the next message."""
        return self._socket.recv(4096).decode().split("\n")

    def until(self, line):
        """Read messages up to one with a line that begins so."""
        lines = []
        while not any(one.startswith(line) for one in lines):
            lines += self.message()

    def forget(self):
        """Take away what has come."""
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self.message():
                continue
        self._socket.settimeout(60)

    def close(self):
        self._socket.close()


@pytest.fixture
def systemd(tmp_path):
    systemd = Systemd(tmp_path)
    yield systemd
    systemd.close()


@pytest.fixture
def fleet(tmp_path):
    with Fleet(log_folder=tmp_path / "logs") as fleet:
        yield fleet


def test_a_broker_is_ready_once_it_is_bound_and_lives_by_its_loop(fleet, systemd):
    listen = ("--frontend", "tcp://127.0.0.1:0", "--backend", "tcp://127.0.0.1:0", "--http", "off")
    process = fleet.spawn("broker", ["imagegen-broker", *listen], environment=systemd.environment())
    assert systemd.message() == ["READY=1", "STATUS=serving"]
    systemd.until("STATUS=0 workers, 0 clients, depth 0 (0 queued, 0 dispatched), 0.00 answers/s")
    systemd.until("WATCHDOG=1")
    process.terminate()
    systemd.until("STOPPING=1")
    assert process.wait(60) == 0


def test_a_worker_is_ready_once_it_is_warm_and_lives_by_its_devices_steps(fleet, systemd, tmp_path):
    place = fleet.start_broker("--heartbeat-interval", "0.2")
    words = ["imagegen-worker", "--broker", place.backend, "--name", "w", "--http-port", "0", *HANGING]
    process = fleet.spawn("w", words, environment=systemd.environment())
    assert systemd.message() == ["STATUS=loading simulated"]
    assert systemd.message() == ["READY=1", "STATUS=simulated on simulated"]
    systemd.until("STATUS=simulated on simulated, depth 0 (0 running), 0.00 images/s")
    systemd.until("WATCHDOG=1")
    with Client(place.frontend) as client:
        client.generate("calm", seed=1)
        systemd.until("WATCHDOG=1")
        client.submit("please hang", seed=2)
        log = tmp_path / "logs" / "w.log"
        fleet.wait_until(lambda: "systemd's watchdog not fed" in log.read_text(), "a withheld word")
        systemd.forget()
        (told,) = systemd.message()  # the process lives on, its device does not
        assert told.startswith("STATUS=simulated on simulated, depth 1 (1 running)")
    assert process.poll() is None
