"""Find the process that listens on a TCP port of this machine."""

import re
from collections.abc import Sequence
from pathlib import Path

import psutil

_PYTHON = re.compile(r"python[\d.]*")


def listener(port: int) -> tuple[str, int | None] | None:
    """Return the name and the process id of the program that listens on a TCP port; None if the port is free.

    The name is "" and the id None if the process belongs to another user, because the kernel hides such owners.
    None also where systemd hides the kernel's tables from a service (`ProcSubset=pid`).
    """
    try:
        connections = psutil.net_connections("tcp")
    except (OSError, psutil.Error):
        return None
    listening = [
        connection
        for connection in connections
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
    ]
    if not listening:
        return None
    pid = next((connection.pid for connection in listening if connection.pid is not None), None)
    return ("", None) if pid is None else (_name(pid), pid)


def _name(pid: int) -> str:
    try:
        return program(psutil.Process(pid).cmdline())
    except psutil.Error:
        return "a process that has just ended"


def program(words: Sequence[str]) -> str:
    """Return the name of the program that a command line runs: a script's own, not its interpreter's."""
    names = [Path(word).name for word in words if word]
    if len(names) > 1 and _PYTHON.fullmatch(names[0]) and not words[1].startswith("-"):
        return names[1]
    return names[0] if names else "a process without a name"
