"""Several hosts with keys as in docs/operations.md: peers with valid keys are served, others get a clear error."""

import pytest

from tests.e2e.hosts import HOSTS, Hosts, Keys, report_of
from tests.programs import needs
from tools.fleet import Fleet
from tools.netns import Network, available

_why_not = available()
pytestmark = [needs("ip", "iptables"), pytest.mark.skipif(_why_not is not None, reason=str(_why_not))]


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    keys = Keys(tmp_path_factory.mktemp("keys"))
    for name in ("stranger", "impostor"):
        keys.make(name)
    keys.copy("broker", "stranger")
    keys.copy("impostor", "alice")
    return keys


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def hosts(keys, logs):
    with Network(*HOSTS) as network, Fleet(log_folder=logs) as fleet:
        yield Hosts(network, fleet, keys)


def generate(hosts, *options):
    """Run `imagegen generate` on the client's host."""
    words = ("a red circle", "--broker", hosts.fleet.frontend, "--connect-timeout", "60", *options)
    return hosts.run("client", "generate", *words)


def test_a_burst_is_served_by_both_hosts(hosts):
    report = report_of(hosts.bench(40))
    assert (report["successful"], report["failed"]) == (40, 0)
    hosts.wait(lambda gpus: sum(gpu["total_requests"] for gpu in gpus.values()) >= 40, "complete totals")
    assert min(gpu["total_requests"] for gpu in hosts.gpus().values()) > 0


@pytest.mark.parametrize(
    ("own", "broker", "code", "sentence"),
    [
        ("stranger", "broker", "unauthorized", "the broker does not accept this key"),
        ("near", "broker", "unauthorized", "the broker does not accept this key"),
        ("alice", "impostor", "broker_unreachable", "or have another key than the one given for it"),
        (None, None, "broker_unreachable", "either only one side uses keys"),
    ],
    ids=["a stranger", "a worker's key", "another broker's key", "no key"],
)
def test_a_client_with_a_wrong_key_gets_a_clear_error(hosts, keys, tmp_path, own, broker, code, sentence):
    out = tmp_path / "picture.png"
    options = () if own is None else keys.of_peer(own, broker)
    done = generate(hosts, "--out", str(out), "--connect-timeout", "5", *options)
    status = 1 if code == "unauthorized" else 3
    assert (done.returncode, done.stdout) == (status, "")
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"error: {code}: ")
    assert f"{hosts.fleet.frontend}: " in error
    assert sentence in error
    assert not out.exists()
    good = generate(hosts, "--out", str(out), *keys.of_peer("alice"))
    assert good.returncode == 0, good.stderr
    assert out.is_file()


@pytest.mark.parametrize("own", ["stranger", "alice"])
def test_a_worker_with_a_wrong_key_logs_it_and_gets_no_work(hosts, keys, logs, own):
    name = f"wrong-{own}"
    hosts.start_worker(name, *keys.of_peer(own), host="near")
    log = logs / f"{name}.log"
    report = "refused by broker, retrying"
    hosts.fleet.wait_until(lambda: report in log.read_text(), "the rejection in the worker's log")
    assert "the broker does not accept this key" in log.read_text()
    assert report_of(hosts.bench(10))["successful"] == 10
    assert set(hosts.gpus()) == {"near", "far"}
    assert hosts.fleet.terminate(name) == 0


@pytest.mark.parametrize("fault", ["link", "drop"])
def test_a_worker_host_is_disconnected_and_returns(hosts, fault):
    def cut(off):
        if fault == "link":
            hosts.network.link("far", up=not off)
        else:
            hosts.network.drop_packets("far", drop=off)

    burst = hosts.bench(40)
    hosts.wait(lambda gpus: gpus.get("far", {}).get("running"), "a running batch")
    cut(off=True)
    report = report_of(burst)
    assert (report["successful"], report["failed"]) == (40, 0)
    hosts.wait(lambda gpus: set(gpus) == {"near"}, "one worker only")
    cut(off=False)
    hosts.wait_for_both()
    before = hosts.gpus()["far"]["total_requests"]
    assert report_of(hosts.bench(40))["successful"] == 40
    hosts.wait(lambda gpus: gpus["far"]["total_requests"] > before, "new work at the reconnected host")
