"""Several hosts on one machine: network namespaces on a bridge, with links that can fail. Needs root, iproute2."""

import os
import secrets
import shutil
import subprocess
from types import TracebackType
from typing import Self

_SUBNET = "10.77.0"
"""Subnet inside the namespaces."""


def available() -> str | None:
    """Return None if network namespaces are available, else the reason."""
    for program in ("ip", "iptables"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"ig{secrets.token_hex(3)}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"no network namespace: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return None


class Network:
    """Named hosts, each a namespace with one address; a context manager that removes them at exit."""

    def __init__(self, *hosts: str) -> None:
        self._tag = f"ig{secrets.token_hex(3)}"
        self.addresses = {host: f"{_SUBNET}.{number}" for number, host in enumerate(hosts, start=1)}

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self._tear_down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tear_down()

    def enter(self, host: str) -> list[str]:
        """Return the command prefix that runs a program on a host."""
        return ["ip", "netns", "exec", self._namespace(host)]

    def link(self, host: str, *, up: bool) -> None:
        """Take the host's link down or up; both ends notice it."""
        _ip("-n", self._namespace("switch"), "link", "set", self._port(host), "up" if up else "down")

    def drop_packets(self, host: str, *, drop: bool) -> None:
        """Drop all packets from and to a host, or no longer."""
        for chain, direction in (("INPUT", "-i"), ("OUTPUT", "-o")):
            action = "-I" if drop else "-D"
            rule = ["iptables", "-w", action, chain, direction, "eth0", "-j", "DROP"]
            subprocess.run([*self.enter(host), *rule], check=True, capture_output=True)

    def _namespace(self, host: str) -> str:
        return f"{self._tag}-{host}"

    def _port(self, host: str) -> str:
        return f"p{self.addresses[host].rpartition('.')[2]}"

    def _build(self) -> None:
        switch = self._namespace("switch")
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for host, address in self.addresses.items():
            space, port = self._namespace(host), self._port(host)
            _ip("netns", "add", space)
            _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            _ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("-n", space, "link", "set", "lo", "up")

    def _tear_down(self) -> None:
        for host in (*self.addresses, "switch"):
            # It may not exist yet.
            subprocess.run(["ip", "netns", "delete", self._namespace(host)], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
