"""Wrong settings: each refused in a line that says what would be right."""

import os
import re
import socket
import sys
from pathlib import Path

import pytest
from click.core import ParameterSource
from click.testing import CliRunner

from imagegen_broker.cli import main
from imagegen_broker.config import check_endpoint
from imagegen_common.settings import EXIT_NOT_BOUND


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--frontend", "5555"], "expected tcp://host:port"),
        (["--frontend", "tcp://127.0.0.1:99999"], "65535"),
        (["--backend", "tcp://0.0.0.0:5556"], "--insecure"),
        (["--backend", "tcp://*:5556"], "--insecure"),
        (["--http", "8080"], "one looks like 127.0.0.1:8080"),
        (["--strategy", "random"], "'queue-depth'"),
        (["--heartbeat-interval", "0"], "--heartbeat-interval"),
        (["--heartbeat-interval", "nan"], "expected a number, 0.01 to 60, got 'nan'"),
        (["--step-timeout", "inf"], "expected a number, at least 0, got 'inf'"),
        (["--key", "/no/such"], "--authorized-clients"),
        (["--frontend", "tcp://no-such-interface:0", "--insecure"], "can't bind tcp://no-such-interface:0"),
    ],
)
def test_a_wrong_setting_is_refused(arguments, words):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert words in result.output


def test_an_address_that_is_not_there_yet_is_worth_another_start():
    result = CliRunner().invoke(main, ["--frontend", "tcp://192.0.2.1:0", "--insecure"])
    assert (result.exit_code, "can't bind tcp://192.0.2.1:0" in result.output) == (71, True)


@pytest.mark.parametrize("option", ["--frontend", "--backend", "--http"])
def test_an_address_that_a_predecessor_holds_is_worth_another_start(option):
    addresses = dict.fromkeys(("--frontend", "--backend"), "tcp://127.0.0.1:0") | {"--http": "127.0.0.1:0"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        addresses[option] = addresses[option].replace(":0", f":{taken.getsockname()[1]}")
        result = CliRunner().invoke(main, [word for pair in addresses.items() for word in pair])
    assert (result.exit_code, "can't bind" in result.output) == (71, True)
    assert f"(process {os.getpid()}) listens there" in result.output


def test_the_unit_starts_again_what_could_not_bind():
    unit = (Path(__file__).parents[3] / "systemd/imagegen-broker.service").read_text()
    assert "Restart=always" in unit
    assert str(EXIT_NOT_BOUND) not in re.search("RestartPreventExitStatus=(.*)", unit)[1].split()


def test_a_wrong_strategy_in_the_environment_is_refused_too():
    result = CliRunner().invoke(main, [], env={"GPU_LOAD_BALANCE_STRATEGY": "random"})
    assert result.exit_code == 2
    assert "GPU_LOAD_BALANCE_STRATEGY" in result.output or "queue-depth" in result.output


def test_the_environment_wins_over_a_file(tmp_path, monkeypatch):
    (tmp_path / "broker.toml").write_text('strategy = "least-wait"\nmax_clients = 7\n')
    monkeypatch.setenv("GPU_LOAD_BALANCE_STRATEGY", "queue-depth")
    arguments = ["--config", str(tmp_path / "broker.toml")]
    with main.make_context("imagegen-broker", arguments) as context:
        assert (context.params["strategy"], context.params["max_clients"]) == ("queue-depth", 7)
        assert context.get_parameter_source("strategy") is ParameterSource.ENVIRONMENT
        assert context.get_parameter_source("max_clients") is ParameterSource.DEFAULT_MAP
    with main.make_context("imagegen-broker", [*arguments, "--strategy", "round-robin"]) as context:
        assert context.params["strategy"] == "round-robin"
        assert context.get_parameter_source("strategy") is ParameterSource.COMMANDLINE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('backend = "tcp://0.0.0.0:5556"', "broker.toml:1"),
        ('http = "8080"', "one looks like 127.0.0.1:8080"),
        ('key = "/no/such.key_secret"', "must be set together"),
        ('key = "/no/such"\nauthorized_clients = "/no"\nauthorized_workers = "/no"', "/no/such"),
        ("max_attempts = 101", "broker.toml:1: max_attempts: expected a whole number, 1 to 100, got 101"),
    ],
)
def test_a_check_sees_what_is_wrong_without_binding(tmp_path, text, words):
    (tmp_path / "broker.toml").write_text(text)
    result = CliRunner().invoke(main, ["--config", str(tmp_path / "broker.toml"), "--check-config"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr


def test_a_check_binds_nothing():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        result = CliRunner().invoke(main, ["--frontend", endpoint, "--check-config"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0].split() == ["frontend", "=", f'"{endpoint}"', "#", "flag"]


def test_http_needs_its_library(monkeypatch):
    monkeypatch.delitem(sys.modules, "imagegen_broker.http", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    result = CliRunner().invoke(main, ["--check-config"])
    assert result.exit_code == 2
    assert "install imagegen-fleet[broker], or use --http off" in result.output
    assert CliRunner().invoke(main, ["--check-config", "--http", "off"]).exit_code == 0


@pytest.mark.parametrize(
    "endpoint", ["tcp://127.0.0.1:0", "tcp://[::1]:5555", "tcp://localhost:1", "ipc:///run/x"]
)
def test_loopback_needs_no_permission(endpoint):
    assert check_endpoint("--frontend", endpoint, open_to_all=False) == endpoint


def test_an_address_in_use_is_reported_where_its_owner_cannot_be_found(monkeypatch):
    def hidden(_):
        raise FileNotFoundError("/proc/net/tcp")

    monkeypatch.setattr("psutil.net_connections", hidden)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        free = ["--frontend", "tcp://127.0.0.1:0", "--backend", "tcp://127.0.0.1:0"]
        result = CliRunner().invoke(main, [*free, "--http", address])
    assert (result.exit_code, f"--http: can't bind {address}" in result.output) == (71, True)
