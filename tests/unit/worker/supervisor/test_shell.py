"""The supervisor's shell with small real processes in place of workers."""

import logging
import os
import signal
import threading

import psutil
import pytest

from imagegen_worker.supervisor.core import RestartPolicy
from imagegen_worker.supervisor.shell import Supervisor, WorkerCommand

QUICK = RestartPolicy(first_delay=0.01, max_delay=0.02, reset_after=3600.0)


def child(script, **environment):
    return WorkerCommand(command=["sh", "-c", script], environment=environment, log_fields={"worker": script[:20]})


def supervise(*children):
    return Supervisor(children, QUICK).run()


@pytest.fixture
def after():
    """Return a function that calls `call` on another thread once `condition` is true."""
    threads = []

    def after(condition, call):
        def wait():
            while not condition():
                threading.Event().wait(0.01)
            call()

        threads.append(threading.Thread(target=wait))
        threads[-1].start()

    yield after
    for thread in threads:
        thread.join(60)


def test_the_highest_status_of_permanent_exits_is_returned(caplog):
    caplog.set_level(logging.INFO)
    assert supervise(child("exit 0"), child("exit 78"), child("exit 2")) == 78
    exits = [record for record in caplog.records if record.message == "worker exited, not restarted"]
    assert sorted(record.fields["status"] for record in exits) == [0, 2, 78]


def test_a_worker_that_dies_is_restarted_until_it_succeeds(tmp_path, caplog):
    count = f"echo x >> {tmp_path}/runs; "
    third = f"test $(wc -l < {tmp_path}/runs) -ge 3 && exit 0; kill -9 $$"
    assert supervise(child(count + third)) == 0
    assert (tmp_path / "runs").read_text() == "x\n" * 3
    died = [record.fields for record in caplog.records if "restart scheduled" in record.message]
    assert [(fields["status"], fields["failures"]) for fields in died] == [(137, 1), (137, 2)]


def test_a_missing_program_is_retried(tmp_path, caplog, after):
    program = tmp_path / "program"
    after(lambda: caplog.text.count("worker start failed") >= 2, lambda: program.symlink_to("/bin/true"))
    assert supervise(WorkerCommand(command=[str(program)])) == 0


def test_a_child_has_its_environment_and_an_empty_stdin(tmp_path):
    script = 'test "$CARD" = 7 && test -n "$PATH" && ! read line'
    assert supervise(child(f"{script} || exit 2", CARD="7")) == 0


def send(number):
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_the_workers_and_the_status_is_0(tmp_path, after, number, caplog):
    drained = tmp_path / "drained"
    worker = f"trap 'touch {drained}; exit 0' USR1; touch {tmp_path}/up; while :; do sleep 0.01; done"
    after(lambda: (tmp_path / "up").exists() and "not restarted" in caplog.text, send(number))
    assert supervise(child(worker), child("exit 2")) == 0
    assert drained.exists()


def test_a_second_signal_kills_the_workers(tmp_path, after):
    worker = f"trap 'touch {tmp_path}/signalled' USR1; echo $$ > {tmp_path}/up; while :; do sleep 0.01; done"
    after((tmp_path / "up").exists, send(signal.SIGTERM))
    after((tmp_path / "signalled").exists, send(signal.SIGTERM))
    assert supervise(child(worker)) == 128 + signal.SIGTERM
    pid = int((tmp_path / "up").read_text())
    assert not psutil.pid_exists(pid)


def test_signal_handlers_are_restored():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)]
    supervise(child("exit 0"))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)] == before
