"""Notifications of the gateway to systemd."""

import socket
import subprocess


def test_the_gateway_notifies_its_start_watchdog_and_stop(fleet, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60)
        options = [
            "--http",
            "127.0.0.1:0",
            "--broker",
            fleet.frontend,
            "--state-folder",
            str(tmp_path / "state"),
        ]
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000000"}
        process = fleet.spawn(
            "gateway", ["imagegen-gateway", *options], stdout=subprocess.PIPE, environment=environment
        )
        assert process.stdout.readline().startswith("http=")
        assert systemd.recv(1000) == b"READY=1\nSTATUS=serving"
        assert systemd.recv(1000) == b"STATUS=0 connections, 0 requests\nWATCHDOG=1"
        assert systemd.recv(1000) == b"WATCHDOG=1"
        assert fleet.terminate("gateway") == 0
        message = b""
        while b"STOPPING=1" not in message:
            message = systemd.recv(1000)
