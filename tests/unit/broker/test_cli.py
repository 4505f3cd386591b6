"""Wrong settings: each refused in a line that says what would be right."""

import pytest
from click.testing import CliRunner

from imagegen_broker.cli import main
from imagegen_broker.config import ConfigError, check_endpoint, is_loopback, parse_address


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--frontend", "5555"], "one looks like tcp://127.0.0.1:5555"),
        (["--frontend", "tcp://127.0.0.1:99999"], "out of range"),
        (["--backend", "tcp://0.0.0.0:5556"], "--insecure"),
        (["--backend", "tcp://*:5556"], "--insecure"),
        (["--http", "8080"], "one looks like 127.0.0.1:8080"),
        (["--strategy", "random"], "'queue-depth'"),
        (["--heartbeat-interval", "0"], "--heartbeat-interval"),
        (["--frontend", "tcp://192.0.2.1:0", "--insecure"], "can't bind tcp://192.0.2.1:0"),
    ],
)
def test_a_wrong_setting_is_refused(arguments, words):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert words in result.output


def test_a_wrong_strategy_in_the_environment_is_refused_too():
    result = CliRunner().invoke(main, [], env={"GPU_LOAD_BALANCE_STRATEGY": "random"})
    assert result.exit_code == 2
    assert "GPU_LOAD_BALANCE_STRATEGY" in result.output or "queue-depth" in result.output


@pytest.mark.parametrize(
    "endpoint", ["tcp://127.0.0.1:0", "tcp://[::1]:5555", "tcp://localhost:1", "ipc:///run/x"]
)
def test_loopback_needs_no_permission(endpoint):
    assert check_endpoint("--frontend", endpoint, open_to_all=False) == endpoint


def test_addresses():
    assert parse_address("--http", "[::1]:80") == ("::1", 80)
    assert is_loopback("127.1.2.3")
    assert not is_loopback("10.0.0.1")
    with pytest.raises(ConfigError):
        parse_address("--http", "host:port")
