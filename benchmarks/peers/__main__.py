"""The project beside its peers: `python -m benchmarks.peers [--quick] [--only NAME...]`.

Each is set up in an environment of its own as its user would, and asked the same, one after the other in each
scenario; one that fails is told of in the table, and the others go on.
"""

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from benchmarks.peers.environments import python_of, versions
from benchmarks.peers.report import figures, insert, markdown, write
from benchmarks.peers.running import REPOSITORY, PeerError, run
from benchmarks.peers.scenarios import OURS, PEERS, SCENARIOS, ideal, quick
from benchmarks.peers.setups.device import Work

NOOP_ROUNDS = 2
FOLDER = Path("out/benchmarks/peers")
NAMES = [peer.name for peer in (OURS, *PEERS)]


class Bench:
    """Runs scenarios with peers and keeps what they told."""

    def __init__(self, folder: Path, venvs: Path, names: list[str]) -> None:
        self.folder = folder
        self.venvs = venvs
        self.told: dict[str, dict[str, Any]] = {name: {} for name in names}
        self.failures: dict[str, dict[str, str]] = {name: {} for name in names}
        self.pythons: dict[str, Path] = {}

    def install(self) -> None:
        """Make the environments."""
        for name in self.told:
            try:
                own = name == OURS.name
                self.pythons[name] = Path(sys.executable) if own else python_of(name, self.venvs)
            except (OSError, subprocess.CalledProcessError) as error:
                self.failures[name]["installation"] = str(error)[:200]

    def run(self, work: Work) -> None:
        """Do one scenario with all peers in turn."""
        for name, python in self.pythons.items():
            begun = time.monotonic()
            try:
                # Peers find this package alone: what else is on our path would hide their own versions.
                path = os.environ.get("PYTHONPATH", "") if name == OURS.name else ""
                environment = {"PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), path]))}
                told = run(name, python, work, self.folder / "logs" / name / work.scenario, environment)
            except PeerError as error:
                self.failures[name][work.scenario] = str(error)
                said: object = f"failed: {error}"
                told = {}
            else:
                said = told
            if work.scenario == "noop":
                self.told[name].setdefault("noop", []).append(told)
            elif told:
                self.told[name][work.scenario] = told
            click.echo(f"{work.scenario} {name} ({time.monotonic() - begun:.0f} s): {said}", err=True)


def _version(name: str) -> str:
    if name != OURS.name:
        return versions(name)
    try:
        return version("imagegen-fleet")
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    said = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return said.stdout.strip() or "unknown"


@click.command()
@click.option("--quick", "in_a_hurry", is_flag=True, help="A tenth of the time, to see that all of it works.")
@click.option("--only", multiple=True, type=click.Choice(NAMES), help="Only this peer, and imagegen.")
@click.option("--scenario", "wanted", multiple=True, type=click.Choice(list(SCENARIOS)), help="Only this one.")
@click.option("--out", type=click.Path(path_type=Path), default=FOLDER, show_default=True)
@click.option("--venvs", type=click.Path(path_type=Path), default=FOLDER / "venvs", help="Of the peers; kept.")
@click.option("--into", type=click.Path(path_type=Path, exists=True), help="A page whose table is made anew.")
def main(
    in_a_hurry: bool, only: tuple[str, ...], wanted: tuple[str, ...], out: Path, venvs: Path, into: Path | None
) -> None:
    """Measure imagegen beside LitServe, mosec, Ray Serve, ipyparallel, dask.distributed and Celery."""
    out = out.resolve()
    peers = [peer for peer in (OURS, *PEERS) if not only or peer.name in (*only, OURS.name)]
    bench = Bench(out, venvs.resolve(), [peer.name for peer in peers])
    bench.install()
    commit = _commit()  # before anybody goes on working
    works = {name: quick(work) if in_a_hurry else work for name, work in SCENARIOS.items()}
    for name, work in works.items():
        if wanted and name not in wanted:
            continue
        for _ in range(NOOP_ROUNDS if name == "noop" and not in_a_hurry else 1):
            bench.run(work)
    ideals = {name: ideal(works[name], works[name].requests) for name in ("burst", "mixed")}
    report = {
        "machine": f"{os.cpu_count()}-core {platform.machine()}, Python {platform.python_version()}",
        "commit": commit,
        "quick": in_a_hurry,
        "ideals": ideals,
        "peers": {
            peer.name: {
                "title": peer.title,
                "note": peer.note,
                "version": _version(peer.name),
                "failures": bench.failures[peer.name],
            }
            for peer in peers
        },
        "told": bench.told,
        "ratios": {name: figures(told, bench.told[OURS.name], ideals) for name, told in bench.told.items()},
    }
    files = write(report, out)
    click.echo(markdown(report))
    for file in files:
        click.echo(file)
    if into is not None:
        insert(report, into)
    if bench.failures[OURS.name]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
