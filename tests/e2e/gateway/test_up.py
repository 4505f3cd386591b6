"""`imagegen up`: a whole fleet in the foreground, stopped together."""

import signal
import subprocess

import httpx2
import psutil
import pytest

from tests.e2e.conftest import command, program

ANY = 'frontend = "tcp://127.0.0.1:0"\nbackend = "tcp://127.0.0.1:0"\nhttp = "127.0.0.1:0"\n'


@pytest.fixture
def arguments(tmp_path):
    (tmp_path / "broker.toml").write_text(ANY)
    (tmp_path / "gateway.toml").write_text(f'http = "127.0.0.1:0"\nstate_folder = "{tmp_path}/state"\n')
    configs = [
        "--broker-config",
        str(tmp_path / "broker.toml"),
        "--gateway-config",
        str(tmp_path / "gateway.toml"),
    ]
    return [program("imagegen"), "up", *configs, "--", "--backend", "simulated", "--gpu", "0,1"]


@pytest.fixture
def up(arguments):
    """A running `imagegen up`, started like a background process of a shell."""
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)  # shells ignore SIGINT in background processes
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, usual)
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()


def children(up):
    return psutil.Process(up.pid).children(recursive=True)


def ready(up):
    """Wait for the line that reports readiness, and return the URL."""
    lines = [up.stdout.readline(), up.stdout.readline()]
    assert lines[1].startswith("ready: http://127.0.0.1:"), (
        lines,
        up.stderr.read() if up.poll() is not None else "",
    )
    return lines[1].split()[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_stops_all_processes(up, number):
    url = ready(up)
    response = httpx2.post(
        f"{url}/v1/images/generations", json={"prompt": "x", "size": "64x64"}, timeout=60, trust_env=False
    )
    assert response.status_code == 200
    started = children(up)
    assert len(started) >= 5, "a broker, a supervisor with two workers, a gateway"
    up.send_signal(number)
    _, errors = up.communicate(timeout=60)
    assert (up.returncode, "Traceback" in errors) == (0, False), errors
    assert psutil.wait_procs(started, timeout=60)[1] == []


def test_all_processes_end_when_it_is_killed(up):
    ready(up)
    started = children(up)
    up.kill()
    assert psutil.wait_procs(started, timeout=60)[1] == []


def test_all_processes_end_when_one_of_them_ends(up):
    ready(up)
    started = children(up)
    [gateway] = [process for process in started if "imagegen-gateway" in " ".join(process.cmdline())]
    gateway.kill()
    _, errors = up.communicate(timeout=60)
    assert up.returncode == 1
    assert "error: gateway exited with status -9" in errors
    assert psutil.wait_procs(started, timeout=60)[1] == []


def test_an_invalid_setting_ends_it_with_exit_code_2(arguments, tmp_path):
    (tmp_path / "gateway.toml").write_text('auth = "maybe"\n')
    ended = command("imagegen", *arguments[1:], check=False)
    assert ended.returncode == 2
    assert "gateway.toml:1" in ended.stderr
    assert "error: gateway exited with status 2" in ended.stderr


def test_a_second_signal_kills_the_daemons_and_the_status_says_so(arguments):
    slow = ("--simulated-batch-seconds", "600")
    process = subprocess.Popen([*arguments, *slow], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = ready(process)
        body = {"prompt": "x", "size": "64x64"}
        created = httpx2.post(f"{url}/v1/jobs", json=body, timeout=60, trust_env=False).json()
        while (
            httpx2.get(f"{url}/v1/jobs/{created['id']}", timeout=60, trust_env=False).json()["state"] != "running"
        ):
            pass
        started = children(process)
        [gateway] = [child for child in started if "imagegen-gateway" in " ".join(child.cmdline())]
        process.terminate()
        gateway.wait(60)  # then it waits for the workers
        process.terminate()
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, "killed the remaining daemons" in errors) == (1, True), errors
        assert psutil.wait_procs(started, timeout=60)[1] == []
    finally:
        process.kill()
        process.communicate()
