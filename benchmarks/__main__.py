"""All benchmarks, one after the other, into one folder: `python -m benchmarks [--quick] [NAMES]`.

Each is a program of its own, so one that fails stops no other. What is not here is left out; the report says so.
"""

import importlib.util
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.about import about


@dataclass(frozen=True, slots=True)
class Room:
    """One benchmark: its module, and the words that make it short. `{out}` is its folder."""

    name: str
    about: str
    module: str
    words: tuple[str, ...] = ("--out", "{out}")
    quick: tuple[str, ...] = ("--quick",)

    @property
    def here(self) -> bool:
        """Whether there is such a module."""
        try:
            return importlib.util.find_spec(self.module) is not None
        except ModuleNotFoundError:
            return False


_SCRAPE_QUICK = ("--workers", "4", "--waiting", "20", "--requests", "50", "--scrapes", "20")
ROOMS = (
    Room("broker", "the broker near its limit, beside libzmq's proxy and a bare loop", "benchmarks.broker"),
    Room("growth", "what a request costs as workers, requests and clients become many", "benchmarks.growth"),
    Room(
        "scaling",
        "1 to 64 workers against the best that is possible",
        "benchmarks.scaling",
        quick=("--quick", "--scale", "0.1"),
    ),
    Room("thousand", "a day of a thousand GPUs, on simulated time", "benchmarks.thousand"),
    Room("peers", "other systems, as their users set them up", "benchmarks.peers"),
    Room("client", "the client beside a bare socket", "benchmarks.client"),
    Room("batching", "continuous batching beside static batching and the stock pipeline", "benchmarks.batching"),
    Room(
        "turns",
        "turns between requests of different sizes within a worker, on simulated time",
        "benchmarks.turns",
        (),
        ("--requests", "50", "--seeds", "1"),
    ),
    Room("scrape", "what a scrape of the broker's metrics costs", "benchmarks.scrape", (), _SCRAPE_QUICK),
)
"""In the order in which they run. The soak is none: it takes an hour whatever the machine (`make soak`)."""
BY_NAME = {room.name: room for room in ROOMS}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one ended; seconds of wall."""

    room: Room
    status: int
    seconds: float


def run(room: Room, folder: Path, *, quick: bool) -> Outcome:
    """Run one in a process of its own; what it prints goes to `folder/output.txt` and here."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [word.format(out=folder) for word in room.words]
    command = [sys.executable, "-m", room.module, *words, *(room.quick if quick else ())]
    begun = time.monotonic()
    with (
        (folder / "output.txt").open("w") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        assert process.stdout is not None, "it was asked for"
        for line in process.stdout:
            file.write(line)
            click.echo(line, nl=False)
    return Outcome(room, process.returncode, time.monotonic() - begun)


def index(outcomes: Sequence[Outcome], missing: Sequence[Room], out: Path) -> list[str]:
    """Return the report over all of them, as Markdown."""
    lines = ["# Benchmarks", "", *about(), "", "| | what | seconds | files |", "|---|---|---|---|"]
    for outcome in outcomes:
        folder = out / outcome.room.name
        files = [
            path.relative_to(out) for path in sorted(folder.iterdir()) if path.suffix in (".md", ".png", ".txt")
        ]
        links = ", ".join(f"[{path.name}]({path})" for path in files)
        name = outcome.room.name if outcome.status == 0 else f"{outcome.room.name}: **failed** ({outcome.status})"
        lines.append(f"| {name} | {outcome.room.about} | {outcome.seconds:.0f} | {links} |")
    lines += [f"| {room.name}: not here | {room.about} | | |" for room in missing]
    for outcome in outcomes:
        folder = out / outcome.room.name
        report = next(iter(sorted(folder.glob("*.md"))), None)
        if report is None:  # what it prints is its report
            lines += [
                "",
                f"## {outcome.room.name}",
                "",
                "```",
                (folder / "output.txt").read_text().rstrip(),
                "```",
            ]
        else:
            lines += ["", f"## {outcome.room.name}", "", *_below(report.read_text(), outcome.room.name)]
    return lines


def _below(text: str, folder: str) -> list[str]:
    """Return a report as part of another: without its title, headings lower, pictures found from there."""
    shown: list[str] = []
    for line in text.rstrip().splitlines():
        if line.startswith("# "):
            continue
        if line.startswith("#"):
            line = f"#{line}"
        shown.append(line.replace("](", f"]({folder}/") if line.startswith("![") else line)
    return shown


@click.command()
@click.option("--quick", is_flag=True, help="Next to nothing of each, to see that all of it works.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/benchmarks"), show_default=True)
@click.argument("names", nargs=-1, type=click.Choice(list(BY_NAME)))
def main(quick: bool, out: Path, names: tuple[str, ...]) -> None:
    """Run all benchmarks, or those NAMES, and write one report over all of them."""
    wanted = [BY_NAME[name] for name in dict.fromkeys(names)] or list(ROOMS)
    missing = [room for room in wanted if not room.here]
    outcomes = []
    for room in wanted:
        if room in missing:
            click.echo(f"== {room.name}: not here, left out")
            continue
        click.echo(f"== {room.name}: {room.about}")
        outcomes.append(run(room, out / room.name, quick=quick))
    report = out / "report.md"
    out.mkdir(parents=True, exist_ok=True)
    report.write_text("\n".join(index(outcomes, missing, out)) + "\n")
    failed = [outcome.room.name for outcome in outcomes if outcome.status != 0]
    click.echo(f"wrote {report}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
