"""The command line of the gateway: validation of settings."""

import os

import pytest
from click.testing import CliRunner

from imagegen_gateway.cli import main


@pytest.fixture
def check(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")

    def run(*arguments):
        return CliRunner().invoke(main, ["--state-folder", str(tmp_path / "state"), "--check-config", *arguments])

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--http", "8000"), "--http: '8000' is not an address; one looks like 127.0.0.1:8080"),
        (
            ("--http", "0.0.0.0:8000"),
            "--http: 0.0.0.0 is reachable from other machines, and keys are off",
        ),
        (("--broker", "http://x"), "--broker: expected tcp://host:port or ipc://path, got 'http://x'"),
        (
            ("--public-url", "images.example.org"),
            "--public-url: expected a URL such as https://images.example.org, got",
        ),
        (("--cors-origin", "https://a.example/page"), "--cors-origin: expected a URL such as"),
        (("--webhook-allow", "10.0.0.1/8"), "--webhook-allow: 10.0.0.1/8 has host bits set; expected a network"),
        (("--tls-key", "key.pem"), "--tls-certificate and --tls-key require each other"),
        (("--tls-key", "no", "--tls-certificate", "no"), "--tls-certificate: the file no does not exist"),
        (("--key", "no.key_secret"), "--key and --broker-key go together"),
        (("--auth", "on"), "'on' is not one of 'off', 'keys'"),
        (("--results-kept", "nan"), "expected a number, at least 1, got 'nan'"),
        (("--max-jobs", "0"), "expected a whole number, at least 1, got '0'"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_invalid_settings_are_rejected(check, arguments, message):
    result = check(*arguments)
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


def test_a_limit_of_a_key_is_a_finite_number(tmp_path):
    arguments = ["--state-folder", str(tmp_path), "keys", "add", "alice", "--requests-per-minute", "nan"]
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, "expected a number, above 0" in result.stderr) == (2, True)


def test_valid_settings_are_accepted_without_creating_files(check, tmp_path):
    assert check("--http", "0.0.0.0:8000", "--auth", "keys", "--webhook-allow", "10.0.0.0/8").exit_code == 0
    assert not (tmp_path / "state").exists()


def test_an_error_in_the_settings_file_states_its_line(check, tmp_path):
    (tmp_path / "gateway.toml").write_text('auth = "off"\nhttp = "0.0.0.0:1"\n')
    result = check("--config", str(tmp_path / "gateway.toml"))
    assert (result.exit_code, f"http: file {tmp_path / 'gateway.toml'}:2" in result.stderr) == (2, True)


def test_an_unusable_results_folder_is_rejected(tmp_path):
    arguments = ["--state-folder", str(tmp_path), "--http", "127.0.0.1:0", "--results-url", "nosuch://bucket"]
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, "--results-url: nosuch://bucket can't be used" in result.stderr) == (2, True)


def test_a_port_in_use_is_reported(tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(main, ["--state-folder", str(tmp_path), "--http", f"127.0.0.1:{port}"])
    assert (result.exit_code, f"--http: can't bind 127.0.0.1:{port}" in result.stderr) == (71, True)
    assert f"(process {os.getpid()}) listens there" in result.stderr
