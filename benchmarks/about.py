"""What a report says first: the command, the commit and the machine. Figures without them are worth nothing."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_PACKAGES = ("pyzmq", "msgspec", "torch")


def about() -> list[str]:
    """Return lines of Markdown."""
    return [f"`{command()}`, commit {commit()}", "", machine()]


def command() -> str:
    """Return the command line, as it would be typed."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    name = sys.argv[0] if spec is None else f"python -m {spec.name.removesuffix('.__main__')}"
    return shlex.join([*name.split(), *sys.argv[1:]])


def commit() -> str:
    """Return the short hash, with a word if files differ from it."""
    try:
        words = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty=, with changes", "--exclude=*"]
        found = subprocess.run(words, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def machine() -> str:
    """Return processor, cores, memory, system and versions, in a line."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [f"{_processor()}, {cores} cores, {memory:.0f} GiB", f"{platform.system()} {platform.release()}"]
    parts.append(f"Python {platform.python_version()}")
    for name in _PACKAGES:
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(parts)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
