"""The programs that some tests need, and the command that installs each of them."""

import os
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NPM_FOLDER = ROOT / "tests/unit/deploy/crds"
NPM_PACKAGES = "npm packages"
"""Types and schemas of Grafana, KEDA and Prometheus's operator."""
NODE_EXAMPLE = ROOT / "examples/node"
NODE_PACKAGES = "npm packages of the example"
"""ZeroMQ and msgpack for Node."""
PYTHON_CLIENTS = "Python clients of OpenAI's API"
CLIENTS_PYTHON = ROOT / ".venv-clients/bin/python"
NODE_CLIENTS = "npm clients of OpenAI's API"
CLIENTS_FOLDER = ROOT / "tests/clients"
RAY_PYTHON = Path(os.environ.get("RAY_PYTHON") or ROOT / ".venv-ray/bin/python")

DEBIAN_PACKAGES = {
    "chromium": "chromium",
    "curl": "curl",
    "ip": "iproute2",
    "iptables": "iptables",
    "jq": "jq",
    "kubectl": "kubernetes-client",
    "node": "npm",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "pivot_root": "util-linux",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "systemctl": "systemd",
    "systemd-analyze": "systemd",
    "unshare": "util-linux",
}
"""Debian package of each program."""
OTHER_COMMANDS = {
    "docker-compose": ".ci/compose",
    NPM_PACKAGES: f"npm install --prefix {NPM_FOLDER.relative_to(ROOT)}",
    NODE_PACKAGES: f"npm install --prefix {NODE_EXAMPLE.relative_to(ROOT)}",
    PYTHON_CLIENTS: "make clients",
    NODE_CLIENTS: f"npm install --prefix {CLIENTS_FOLDER.relative_to(ROOT)}",
    "Ray": "make test-ray",
}
"""Installation command of everything that Debian 12 does not package, or only in too old a version."""
_PREFIX = "not installed: "


def installed(program: str) -> bool:
    """Return whether the tests can use a program of the tables above."""
    if program == NPM_PACKAGES:
        return (NPM_FOLDER / "node_modules/@grafana/schema").is_dir()
    if program == NODE_PACKAGES:
        return (NODE_EXAMPLE / "node_modules/zeromq").is_dir()
    if program == PYTHON_CLIENTS:
        return CLIENTS_PYTHON.exists()
    if program == NODE_CLIENTS:
        return (CLIENTS_FOLDER / "node_modules/openai").is_dir()
    if program == "Ray":
        return RAY_PYTHON.exists()
    return shutil.which(program) is not None


def reason(*missing: str) -> str:
    """Return the reason for skipping a test, which `summary` can read. Raises `KeyError` for unknown programs."""
    install_command([*missing])
    return _PREFIX + ", ".join(missing)


def needs(*programs: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test unless all programs are installed."""
    install_command([*programs])
    missing = [program for program in programs if not installed(program)]
    return pytest.mark.skipif(bool(missing), reason=reason(*missing))


def require(*programs: str) -> None:
    """Skip the running test unless all programs are installed."""
    missing = [program for program in programs if not installed(program)]
    if missing:
        pytest.skip(reason(*missing))


def install_command(programs: list[str]) -> str:
    """Return one shell command that installs the programs. Raises `KeyError` for a program of neither table."""
    others = [OTHER_COMMANDS[program] for program in programs if program not in DEBIAN_PACKAGES]
    packages = {DEBIAN_PACKAGES[program] for program in programs if program in DEBIAN_PACKAGES}
    if {NPM_PACKAGES, NODE_PACKAGES, NODE_CLIENTS}.intersection(programs) and not installed("node"):
        packages.add(DEBIAN_PACKAGES["node"])
    apt = [f"sudo apt-get install {' '.join(sorted(packages))}"] if packages else []
    return " && ".join(apt + others)


def summary(reasons: list[str]) -> str | None:
    """Return a line about the tests skipped for want of a program, from the reasons of all skipped tests."""
    lists = [found[1].split(", ") for each in reasons if (found := re.match(f"(?:Skipped: )?{_PREFIX}(.+)", each))]
    if not lists:
        return None
    missing = sorted({program for each in lists for program in each}, key=str.lower)
    tests = "1 test was" if len(lists) == 1 else f"{len(lists)} tests were"
    are = "is" if len(missing) == 1 else "are"
    command = install_command(missing)
    return f"{tests} skipped: {', '.join(missing)} {are} not installed. Install with: {command}"
