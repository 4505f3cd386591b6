"""The ports in all deployments are those that the broker has by default."""

from tests.unit.deploy.commands import BROKER_PORTS, GATEWAY_PORT, default


def test_the_brokers_ports_are_its_defaults():
    addresses = {name: default("broker", name) for name in BROKER_PORTS}
    assert {name: int(given.rpartition(":")[2]) for name, given in addresses.items()} == BROKER_PORTS


def test_workers_dial_the_backend_by_default():
    assert default("worker", "broker") == (f"tcp://127.0.0.1:{BROKER_PORTS['backend']}",)


def test_the_gateways_port_is_its_default():
    assert default("gateway", "http") == f"127.0.0.1:{GATEWAY_PORT}"
    assert default("gateway", "broker") == (f"tcp://127.0.0.1:{BROKER_PORTS['frontend']}",)
