"""Which process listens on a port of this machine, from /proc."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

_LISTEN = "0A"
_PYTHON = re.compile(r"python[\d.]*")


def listener(port: int, proc: Path = Path("/proc")) -> tuple[str, int | None] | None:
    """Return the name and the id of the process that listens on a TCP port; None: nobody does.

    The name is "" and the id None where it belongs to another user, whom the kernel does not tell.
    """
    sockets = {inode for table in ("tcp", "tcp6") for inode in _listening(proc / "net" / table, port)}
    if not sockets:
        return None
    for folder in proc.glob("[0-9]*"):
        if sockets & _sockets(folder):
            return _name(folder), int(folder.name)
    return "", None


def _listening(table: Path, port: int) -> Iterator[str]:
    """Yield the inodes of the sockets that listen on a port."""
    if not table.exists():  # no IPv6
        return
    for line in table.read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == _LISTEN and int(words[1].rpartition(":")[2], 16) == port:
            yield words[9]


def _sockets(process: Path) -> set[str]:
    found = set()
    try:
        for file in (process / "fd").iterdir():
            target = str(file.readlink())
            if target.startswith("socket:["):
                found.add(target[8:-1])
    except OSError:  # another user's, or it has just ended
        pass
    return found


def _name(process: Path) -> str:
    try:
        words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "a process that has just ended"
    return program(words)


def program(words: Sequence[str]) -> str:
    """Return the name of the program that a command line runs: of a script its own, not its interpreter's."""
    names = [Path(word).name for word in words if word]
    if len(names) > 1 and _PYTHON.fullmatch(names[0]) and not words[1].startswith("-"):
        return names[1]
    return names[0] if names else "a process without a name"
