"""What systemd is told, read from a socket like its own."""

import itertools
import logging
import math
import os
import socket
import threading

import pytest

from imagegen_common.notify import STATUS_SECONDS, SystemdNotifier


@pytest.fixture
def systemd(tmp_path):
    """A socket of messages; `heard()` returns the lines of all that have come."""

    class Systemd:
        def __init__(self):
            self.address = str(tmp_path / "notify")
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self.socket.bind(self.address)
            self.socket.setblocking(False)
            self.made = []

        def heard(self):
            lines = []
            while True:
                try:
                    lines += self.socket.recv(4096).decode().split("\n")
                except BlockingIOError:
                    return lines

        def notifier(self, **environment):
            self.made.append(SystemdNotifier({"NOTIFY_SOCKET": self.address, **environment}))
            return self.made[-1]

    systemd = Systemd()
    yield systemd
    for notifier in systemd.made:
        notifier.close()
    systemd.socket.close()


def unasked():
    raise AssertionError("nobody wants to know")


def test_without_systemd_nothing_is_asked_and_nothing_is_due():
    notifier = SystemdNotifier({})
    notifier.ready("serving")
    notifier.tick(1e9, unasked)
    assert notifier.due_at == math.inf


def test_children_have_nothing_to_tell(systemd):
    environment = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/"}
    SystemdNotifier(environment).close()
    assert environment == {"HOME": "/"}


def test_a_start_and_an_end_are_told(systemd):
    notifier = systemd.notifier()
    notifier.starting("loading sdxl")
    notifier.ready("sdxl on cuda")
    notifier.stopping("ending")
    assert systemd.heard() == [
        "STATUS=loading sdxl", "READY=1", "STATUS=sdxl on cuda", "STOPPING=1", "STATUS=ending",
    ]  # fmt: skip


def test_a_status_stays_one_line(systemd):
    systemd.notifier().ready("model\nMAINPID=1")
    assert systemd.heard() == ["READY=1", "STATUS=model MAINPID=1"]


def test_a_status_comes_every_few_seconds(systemd):
    notifier = systemd.notifier()
    notifier.tick(100.0, lambda: "one")
    assert notifier.due_at == 100.0 + STATUS_SECONDS
    notifier.tick(notifier.due_at - 0.01, unasked)
    notifier.tick(notifier.due_at, lambda: "two")
    assert systemd.heard() == ["STATUS=one", "STATUS=two"]


def test_the_watchdog_is_fed_eight_times_in_its_time(systemd):
    notifier = systemd.notifier(WATCHDOG_USEC="4000000", WATCHDOG_PID=str(os.getpid()))
    now, heard = 0.0, []
    while now < 40.0:
        now = max(now, notifier.due_at)
        notifier.tick(now, lambda: "busy")
        heard += systemd.heard()
    assert heard.count("WATCHDOG=1") == 81


def fed(systemd, steps, until):
    """Return when a watchdog of 4 seconds was fed by work that makes steps at these times."""
    notifier = systemd.notifier(WATCHDOG_USEC="4000000")
    times = []
    now = 0.0
    while (now := max(now, notifier.due_at)) <= until:
        stuck = now - max(step for step in steps if step <= now)
        notifier.tick(now, lambda: "busy", stuck_seconds=stuck)
        if "WATCHDOG=1" in systemd.heard():
            times.append(now)
    return times


@pytest.mark.parametrize("seconds", [0.1, 0.9, 1.1, 2.3, 3.1, 3.9])
def test_steps_that_are_shorter_than_its_time_are_no_hang(systemd, seconds):
    times = fed(systemd, [seconds * number for number in range(int(60 / seconds))], until=40.0)
    assert max(late - early for early, late in itertools.pairwise(times)) < 4.0


def test_what_makes_no_step_is_told_of_as_alive_no_more(systemd, caplog):
    times = fed(systemd, [0.0, 1.7], until=40.0)
    assert 1.7 < times[-1] < 2.7  # so it strikes five seconds after the last step, or before
    assert "no step" in caplog.text


@pytest.mark.parametrize("other", [{"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "0"}])
def test_a_watchdog_of_somebody_else_is_not_fed(systemd, other):
    notifier = systemd.notifier(**{"WATCHDOG_USEC": "4000000", **other})
    notifier.tick(1.0, lambda: "idle")
    assert systemd.heard() == ["STATUS=idle"]


def test_a_name_without_a_file_is_understood():
    name = f"imagegen-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        notifier = SystemdNotifier({"NOTIFY_SOCKET": f"@{name}"})
        notifier.ready("serving")
        notifier.close()
        assert listening.recv(4096) == b"READY=1\nSTATUS=serving"


def test_a_busy_systemd_misses_a_status_and_no_start(systemd, caplog):
    notifier = systemd.notifier()
    while not caplog.records:
        notifier.tick(notifier.due_at, lambda: "busy")
    assert "systemd not notified" in caplog.text
    waiting = threading.Thread(target=notifier.ready, args=("serving",))
    waiting.start()
    lines = []
    while "READY=1" not in lines:
        lines += systemd.heard()
    waiting.join()
    assert lines[-1] == "STATUS=serving"


def test_a_systemd_that_is_gone_hinders_nothing_and_is_told_of_once(tmp_path, caplog):
    notifier = SystemdNotifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    notifier.ready("serving")
    notifier.tick(1.0, lambda: "serving")
    notifier.close()
    notifier.ready("after the end")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
