"""A container with a real systemd, in namespaces and on an overlay of this machine's files. Needs root.

It has the programs of this machine; its files and processes disappear with it.
"""

import ctypes
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Self

_SCRIPT = Path(__file__).with_suffix(".sh")
_NAMESPACES = ("--mount", "--pid", "--fork", "--uts", "--ipc", "--net", "--cgroup", "--propagation", "private")
_PROGRAMS = ("unshare", "nsenter", "systemctl", "systemd-analyze", "pivot_root")
_INITS = (Path("/lib/systemd/systemd"), Path("/usr/lib/systemd/systemd"))
_PROBE = """
set -e; mount -t tmpfs t "$0"; mkdir "$0/u" "$0/w" "$0/r"
mount -t overlay o -o lowerdir=/,upperdir="$0/u",workdir="$0/w" "$0/r"
mount -t proc p "$0/r/proc"; mount -t sysfs -o ro s "$0/r/sys"; mount -t cgroup2 c "$0/r/sys/fs/cgroup"
"""
"""Mounts that a container runtime may deny."""
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class MachineError(RuntimeError):
    """The machine did not boot, or a command or a wait on it failed."""


def available() -> str | None:
    """Return None if such a machine is possible here, else the reason."""
    for program in _PROGRAMS:
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if os.geteuid() != 0:
        return "namespaces need root"
    try:
        group = _make_group()
    except OSError as error:
        return f"no control group: {error}"
    group.rmdir()
    with tempfile.TemporaryDirectory() as folder:
        tried = subprocess.run(
            ["unshare", *_NAMESPACES, "sh", "-c", _PROBE, folder], capture_output=True, text=True, check=False
        )
    return f"no namespaces with an overlay: {tried.stderr.strip()}" if tried.returncode else None


class Machine:
    """A machine that boots on entering the context. `show` maps its paths to folders of this machine."""

    def __init__(self, folder: Path, show: Mapping[str, Path]) -> None:
        self._folder = folder
        self._show = show
        self._group = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0

    def __enter__(self) -> Self:
        try:
            self._boot()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def enter(self) -> list[str]:
        """Return the command prefix that runs a program on the machine as root."""
        return ["nsenter", "-t", str(self._init), "-m", "-p", "-u", "-i", "-n", "-C", "-r", "-w"]

    def run(self, *words: str, text: str | None = None, check: bool = True) -> str:
        """Run a program on the machine with the input `text`; return its output. Raises `MachineError`."""
        done = subprocess.run(
            [*self.enter(), *words], input=text, capture_output=True, text=True, check=False, timeout=120
        )
        if check and done.returncode:
            raise MachineError(
                f"{' '.join(words)} exited with status {done.returncode}: {done.stdout}{done.stderr}"
            )
        return done.stdout

    def write(self, path: str, text: str) -> None:
        """Write a file on the machine."""
        self.run("mkdir", "-p", str(Path(path).parent))
        self.run("tee", path, text=text)

    def show(self, unit: str) -> dict[str, str]:
        """Return the properties of a unit."""
        lines = self.run("systemctl", "show", unit).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def journal(self, unit: str) -> list[str]:
        """Return the journal of a unit."""
        lines = self.run("journalctl", "--no-pager", "-o", "json", "-u", unit, check=False).splitlines()
        return [str(json.loads(line)["MESSAGE"]) for line in lines]

    def wait_until(self, unit: str, timeout: float = 60.0, **properties: str) -> dict[str, str]:
        """Wait until the properties of a unit match these patterns, and return all.

        Raises `MachineError`, with the unit's journal, after `timeout` seconds.
        """
        end = time.monotonic() + timeout
        while True:
            shown = self.show(unit)
            if all(re.fullmatch(pattern, shown[key]) for key, pattern in properties.items()):
                return shown
            if time.monotonic() > end:
                journal = "\n".join(self.journal(unit))
                found = {key: shown[key] for key in properties}
                raise MachineError(
                    f"{unit}: expected {properties} within {timeout:.0f} s, got {found}:\n{journal}"
                )
            Event().wait(0.05)

    # ---- boot and shutdown ------------------------------------------------------------------------------------

    def _boot(self) -> None:
        stage = self._folder / "stage"
        stage.mkdir()
        self._group = _make_group()
        init = next(path for path in _INITS if path.exists())
        shown = [str(word) for place, folder in self._show.items() for word in (folder, place)]
        words = [
            "unshare",
            *_NAMESPACES,
            "--kill-child=SIGKILL",
            "sh",
            str(_SCRIPT),
            str(stage),
            str(init),
            *shown,
        ]
        with (self._folder / "console.log").open("wb") as console:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                preexec_fn=self._prepare,
                start_new_session=True,
            )
        end = time.monotonic() + 60
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > end:
                console_log = (self._folder / "console.log").read_text(errors="replace")
                raise MachineError(f"the machine did not boot:\n{console_log}")
            Event().wait(0.05)

    def _prepare(self) -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        (self._group / "cgroup.procs").write_text(str(os.getpid()))

    def _is_up(self) -> bool:
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children or Path(f"/proc/{children[0]}/comm").read_text() != "systemd\n":
            return False
        self._init = int(children[0])
        return self.run("systemctl", "is-system-running", check=False).strip() in ("running", "degraded")

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()  # the kernel kills all other processes of the namespace with it
            self._process.wait()
        if self._group.is_dir():
            _remove_group(self._group)


def _make_group() -> Path:
    """Create a control group for a machine. Raises OSError."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            group = Path(place) / f"imagegen-{secrets.token_hex(3)}"
            group.mkdir()
            return group
    raise OSError("cgroup2 is not mounted")


def _remove_group(group: Path, timeout: float = 10.0) -> None:
    """Remove a control group and its subgroups, once their last processes have exited."""
    end = time.monotonic() + timeout
    while True:
        try:
            for folder, _, _ in os.walk(group, topdown=False):
                Path(folder).rmdir()
        except OSError:
            if time.monotonic() > end:
                raise
            Event().wait(0.02)
        else:
            return
