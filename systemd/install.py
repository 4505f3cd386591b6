"""Install or uninstall the fleet's units, settings and user on a host. Needs only Python and systemd.

    sudo python3 systemd/install.py install             # units, settings, user; one worker per detected GPU
    sudo python3 systemd/install.py install --dry-run   # print the actions
    sudo python3 systemd/install.py uninstall

It may be run repeatedly: correct files stay untouched, and settings are never overwritten.
"""

import argparse
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
UNITS = Path("/usr/local/lib/systemd/system")
SYSUSERS = Path("/usr/local/lib/sysusers.d/imagegen.conf")
DOCUMENTATION = Path("/usr/local/share/doc/imagegen")
SETTINGS = Path("/etc/imagegen")
CACHE = Path("/var/cache/imagegen")
STATE = (Path("/var/lib/imagegen-gateway"), Path("/var/lib/imagegen-broker"))
OPERATORS = Path("/etc/systemd/system")
"""Folder of drop-ins and of links to enabled units."""
WANTED = OPERATORS / "imagegen-workers.target.wants"
GROUP = "imagegen"
ROLES = ("broker", "worker", "gateway")
USUAL_ROLES = ("broker", "worker")
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
"""Folders that are hidden from the units (ProtectHome, PrivateTmp)."""
BACKOFF_VERSION = 254
"""First systemd version with RestartSteps; older ones log a warning at each start."""
_GPU = re.compile(r"\d{1,4}|(GPU|MIG)-[\w-]+")


class InstallError(Exception):
    """The host does not meet a requirement; the message names the requirement."""


@dataclass(frozen=True, slots=True)
class File:
    """A file to install; with `keep` an existing file belongs to the operator and is not overwritten."""

    path: Path
    content: str
    keep: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The target: the running system, or the root folder of another one (`destdir`)."""

    destdir: Path | None
    dry_run: bool

    def at(self, path: Path) -> Path:
        """Return the path on this system of a path of the target."""
        return path if self.destdir is None else self.destdir / path.relative_to("/")

    def say(self, done: str, would: str, what: object) -> None:
        """Print an action, or the action of a dry run."""
        print(f"{would if self.dry_run else done} {what}", flush=True)  # before the output of a command

    def folder(self, path: Path, mode: int, group: str | None = None) -> None:
        """Create a folder if it does not exist."""
        there = self.at(path)
        if there.is_dir():
            return
        self.say("created", "would create", there)
        if not self.dry_run:
            there.mkdir(parents=True)
            there.chmod(mode)
            if group is not None and self.destdir is None:
                shutil.chown(there, group=group)

    def write(self, file: File) -> None:
        """Write a file, unless its content is correct or it belongs to the operator."""
        there = self.at(file.path)
        if there.is_file() and (file.keep or there.read_text() == file.content):
            print(f"{'kept' if file.keep else 'unchanged'} {there}")
            return
        self.folder(file.path.parent, 0o755)
        self.say("wrote", "would write", there)
        if not self.dry_run:
            there.write_text(file.content)
            there.chmod(0o644)

    def remove(self, path: Path) -> None:
        """Remove a file or a folder if it exists."""
        there = self.at(path)
        if not there.exists():
            return
        self.say("removed", "would remove", there)
        if self.dry_run:
            return
        if there.is_dir():
            shutil.rmtree(there)
        else:
            there.unlink()

    def run(self, *words: str) -> None:
        """Run a command on the host; do nothing with `destdir`. Raises `InstallError` if the command fails."""
        if self.destdir is not None:
            return
        self.say("running", "would run", " ".join(words))
        if not self.dry_run and (status := subprocess.run(words, check=False).returncode):
            raise InstallError(f"{' '.join(words)} exited with status {status}")


def install(host: Host, prefix: Path, roles: Sequence[str], gpus: Sequence[str] | None, *, now: bool) -> None:
    """Install and enable all units; `gpus` None selects the GPUs that the worker's command detects."""
    version = systemd_version()
    if host.destdir is None:
        if not version:
            raise InstallError("systemd is not installed")
        check_environment(prefix, roles)
    for file in files(prefix, roles, version):
        host.write(file)
    host.run("systemd-sysusers", str(SYSUSERS))
    if host.destdir is None and not host.dry_run:
        check_user(prefix, roles)
    for folder in (SETTINGS / "keys", SETTINGS / "keys/clients", SETTINGS / "keys/workers"):
        host.folder(folder, 0o750, GROUP)
    if booted():
        host.run("systemctl", "daemon-reload")
    if host.destdir is not None:
        return
    units = ["imagegen-broker.service"] if "broker" in roles else []
    if "worker" in roles:
        found = find_gpus(prefix) if gpus is None else gpus
        workers = [f"imagegen-worker@{gpu}.service" for gpu in found]
        if not found and gpus is None:
            workers = enabled_workers(host)
            print(f"no GPU found; enabled workers: {' '.join(workers) or 'none'}")
            if not workers:
                print('to enable one: --gpus 0 (make install GPUS=0), and device = "cpu" in worker.toml')
        units += ["imagegen-workers.target", *workers]
    if "gateway" in roles:
        units.append("imagegen-gateway.service")
    host.run("systemctl", "enable", *(["--now"] if now else []), *units)
    if not now:
        print(f"review {SETTINGS}/*.toml, then run: systemctl start {' '.join(units)}")


def uninstall(host: Host, *, purge: bool) -> None:
    """Stop, disable and remove all units; `purge` also removes settings, drop-ins, keys, models and jobs."""
    instances = enabled_workers(host)
    for unit in ("imagegen-broker.service", "imagegen-gateway.service"):
        if host.at(UNITS / unit).exists():
            instances.append(unit)
    if host.at(UNITS / "imagegen-workers.target").exists():
        instances.append("imagegen-workers.target")
    if booted():
        host.run("systemctl", "stop", "imagegen-worker@*.service")  # includes instances that were started manually
    if instances:
        host.run("systemctl", "disable", *(["--now"] if booted() else []), *instances)
    for path in sorted(host.at(UNITS).glob("imagegen-*")):
        host.remove(UNITS / path.name)
    drop_ins = [OPERATORS / path.name for path in sorted(host.at(OPERATORS).glob("imagegen-*.d"))]
    kept = (SETTINGS, *drop_ins, CACHE, *STATE)
    for path in (SYSUSERS, DOCUMENTATION, *(kept if purge else ())):
        host.remove(path)
    if booted():
        host.run("systemctl", "daemon-reload")
    left = [path for path in kept if host.at(path).exists()]
    if left and not host.dry_run:
        print(f"left: {', '.join(map(str, left))} (--purge removes them), and the user {GROUP}")


def files(prefix: Path, roles: Sequence[str], version: int) -> list[File]:
    """Return the files of a host with these roles and this version of systemd."""
    found = [File(SYSUSERS, (HERE / "sysusers.conf").read_text())]
    for role in roles:
        for unit in sorted(HERE.glob(f"imagegen-{role}*.*")):
            found.append(File(UNITS / unit.name, unit.read_text().replace("@PREFIX@", str(prefix))))
            if unit.suffix == ".service" and version >= BACKOFF_VERSION:
                backoff = (HERE / "backoff.conf").read_text()
                found.append(File(UNITS / f"{unit.name}.d/10-backoff.conf", backoff))
        settings = (REPOSITORY / f"configs/{role}.toml").read_text()
        found.append(File(SETTINGS / f"{role}.toml", settings, keep=True))
    for page in (REPOSITORY / "docs/systemd.md", *sorted((HERE / "examples").iterdir())):
        found.append(File(DOCUMENTATION / page.name, page.read_text()))
    return found


def enabled_workers(host: Host) -> list[str]:
    """Return the units of the workers that start at boot."""
    return sorted(path.name for path in host.at(WANTED).glob("imagegen-worker@*.service"))


def check_environment(prefix: Path, roles: Sequence[str]) -> None:
    """Raise `InstallError` unless the virtual environment is visible to the units."""
    commands = [prefix / f"bin/imagegen-{role}" for role in roles]
    for path in (prefix / "bin/python3", *commands):
        if not path.is_file():
            raise InstallError(
                f"{path} does not exist; create the environment first: python3 -m venv {prefix} && "
                f"{prefix}/bin/pip install -c constraints.txt '.[cli,{','.join(roles)}]'"
            )
    for needed in (prefix / "bin/python3", *map(interpreter, commands), base(prefix)):
        for path in way(needed):
            if any(path.is_relative_to(hidden) for hidden in HIDDEN):
                raise InstallError(
                    f"{path} is hidden from the units, as is everything in {', '.join(HIDDEN)}; create the "
                    "environment elsewhere, with a Python that is installed for all users"
                )


def interpreter(command: Path) -> Path:
    """Return the interpreter in a script's first line; a moved script still names its old one."""
    with command.open("rb") as file:
        words = file.readline(4096).removeprefix(b"#!").split()
    return Path(os.fsdecode(words[0])) if words and words[0].startswith(b"/") else command


def base(prefix: Path) -> Path:
    """Return the folder of the base Python of an environment, which a copied `python3` does not link to."""
    settings = prefix / "pyvenv.cfg"
    told = re.search(r"^home *= *(/.*)$", settings.read_text() if settings.is_file() else "", re.MULTILINE)
    return Path(told[1].strip()) if told else prefix


def way(path: Path) -> Iterator[Path]:
    """Yield a path, and the path after each symbolic link on the way to it is resolved."""
    yield path
    for part in (*reversed(path.parents), path):
        if part.is_symlink():
            yield from way(Path(os.path.normpath(part.parent / part.readlink() / path.relative_to(part))))
            return


def check_user(prefix: Path, roles: Sequence[str], user: str = GROUP) -> None:
    """Raise `InstallError` unless the units' user can run the commands (umask, missing extra)."""
    for role in roles:
        command = prefix / f"bin/imagegen-{role}"
        try:
            done = subprocess.run(
                [command, "--check-config"],
                user=user,
                group=pwd.getpwnam(user).pw_gid,
                extra_groups=(),
                cwd="/",
                env={"PATH": "/usr/bin:/bin"},
                capture_output=True,
                text=True,
                check=False,
            )
        except PermissionError as error:
            why = str(error)
        else:
            if done.returncode == 0:
                continue
            why = (done.stderr.strip() or f"it exited with status {done.returncode}").splitlines()[-1]
        raise InstallError(
            f"the user {user} can't run {command}: {why} (after a strict umask, run "
            f"chmod -R go+rX {prefix}; the user must also be able to enter all parent folders)"
        )


def find_gpus(prefix: Path) -> list[str]:
    """Return the numbers of this host's GPUs. Raises `InstallError` if the worker's command fails."""
    done = subprocess.run(
        [prefix / "bin/imagegen-worker", "--list-gpus"], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise InstallError(
            f"imagegen-worker --list-gpus exited with status {done.returncode}; select GPUs with --gpus"
        )
    return [str(json.loads(line)["number"]) for line in done.stdout.splitlines()]


def booted() -> bool:
    """Return whether systemd is running on this host."""
    return Path("/run/systemd/system").is_dir()


def systemd_version() -> int:
    """Return the version of systemd; 0 if it is not installed."""
    if shutil.which("systemctl") is None:
        return 0
    said = subprocess.run(["systemctl", "--version"], stdout=subprocess.PIPE, text=True, check=False).stdout
    match = re.match(r"systemd (\d+)", said)
    return int(match[1]) if match else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = _parser().parse_args(arguments)
    host = Host(destdir=options.destdir, dry_run=options.dry_run)
    try:
        if options.destdir is None and not options.dry_run and os.geteuid() != 0:
            raise InstallError("only root can change the host; --dry-run prints the actions")
        if options.command == "uninstall":
            uninstall(host, purge=options.purge)
        else:
            install(host, options.prefix, options.roles, options.gpus, now=options.now)
    except (InstallError, OSError) as error:
        print(f"install.py: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--dry-run", action="store_true", help="print the actions and change nothing")
    common.add_argument("--destdir", type=_absolute, help="install below this folder and run no commands")
    laying = commands.add_parser("install", parents=[common], help="install or update, and enable")
    laying.add_argument(
        "--prefix", type=_absolute, default=Path("/opt/imagegen"), help="virtual environment [/opt/imagegen]"
    )
    laying.add_argument(
        "--roles",
        type=_roles,
        default=USUAL_ROLES,
        help="broker, worker, gateway, separated by commas [broker,worker]",
    )
    laying.add_argument("--gpus", type=_gpus, help="numbers or UUIDs such as 0,1, or 'none' [every detected GPU]")
    laying.add_argument("--now", action="store_true", help="also start the units")
    taking = commands.add_parser("uninstall", parents=[common], help="stop, disable and remove")
    taking.add_argument("--purge", action="store_true", help="also remove settings, keys, models and jobs")
    return parser


def _absolute(text: str) -> Path:
    if not text.startswith("/") or re.search(r"[\s%$\"'\\]", text):
        raise argparse.ArgumentTypeError(f"{text!r} must be an absolute path without spaces or %$\"'\\")
    return Path(os.path.normpath(text))


def _roles(text: str) -> tuple[str, ...]:
    roles = tuple(text.split(","))
    if not set(roles) <= set(ROLES):
        raise argparse.ArgumentTypeError(f"{text!r} must be some of {', '.join(ROLES)}, with a comma between")
    return roles


def _gpus(text: str) -> tuple[str, ...]:
    gpus = () if text == "none" else tuple(text.split(","))
    if not all(_GPU.fullmatch(gpu) for gpu in gpus):
        raise argparse.ArgumentTypeError(f"{text!r} must be numbers or UUIDs with commas between, or 'none'")
    return gpus


if __name__ == "__main__":
    sys.exit(main())
