"""An hour of mixed traffic with restarts: `python -m benchmarks.soak --minutes 60`.

Exit status 1: a request was lost or answered wrongly, a process ended by itself, or something grows.
"""

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks.about import about
from benchmarks.soak import plot, samples, verdict
from benchmarks.soak.counts import Counts
from benchmarks.soak.stage import Stage, schedule
from imagegen_common.command_line import NumberRange
from tools.fleet import Fleet

SCRAPE_EVERY = 5.0
FILL_FROM = 300.0
"""Seconds: what is shorter is not judged."""


def soak(
    seconds: float,
    folder: Path,
    *,
    rate: float,
    sample_every: float,
    restart_every: float,
    visit_every: float,
    seed: int,
) -> tuple[Stage, Counts]:
    """Run the traffic for so long, and let it end; samples go to `folder/samples.csv`, logs to `folder/logs`."""
    with Fleet(log_folder=folder / "logs") as fleet:
        stage = Stage(fleet, folder, rate, seed, fill=seconds >= FILL_FROM)
        stage.start()
        with samples.Sampler(folder / "samples.csv", stage.lives, sample_every) as sampler:
            begun = time.monotonic()
            plans = [
                (at, what)
                for every, what, quiet in (
                    (restart_every, "restart", 2.0),
                    (visit_every, "visit", 2.0),
                    (SCRAPE_EVERY, "scrape", 0.0),
                )
                for at in schedule(seconds, every, quiet)
            ]
            for at, what in sorted(plans):
                time.sleep(max(0.0, begun + at - time.monotonic()))
                stage.check()
                match what:
                    case "restart":
                        stage.restart_one(sampler.seconds)
                    case "visit":
                        stage.visit()
                    case "scrape":
                        stage.scrape()
            time.sleep(max(0.0, begun + seconds - time.monotonic()))
        stage.check()
        counts = stage.finish()
    return stage, counts


def report(stage: Stage, counts: Counts, found: Sequence[verdict.Line], seconds: float) -> tuple[list[str], bool]:
    """Return the report as lines of Markdown, and whether all is well."""
    growing = [line for line in found if line.growing]
    judged = sum(line.judged for line in found)
    problems = [*stage.problems, *counts.told, *(f"{line.name} {line.verdict}" for line in growing)]
    good = not (counts.lost or counts.wrong or problems)
    cores = sum(line.cores * line.minutes for line in found) / max(seconds / 60, 1e-9)
    kinds: dict[str, int] = {}
    for _, _, how in stage.events:
        kinds[how] = kinds.get(how, 0) + 1
    flat = (
        f"{judged - len(growing)} of {judged} lives long enough to judge are flat"
        if judged
        else "too short to judge"
    )
    lines = [
        "# Soak",
        "",
        *about(),
        "",
        f"{seconds / 60:.1f} minutes; {sum(counts.sent.values())} requests,"
        f" {counts.lost} lost, {counts.wrong} wrong;"
        f" restarts: {', '.join(f'{count} by {how}' for how, count in sorted(kinds.items())) or 'none'};"
        f" all together {cores:.2f} cores. {flat}.",
        "",
        verdict.RULE,
        "",
        *verdict.table(found),
        "",
        "| request: end | count |",
        "|---|---|",
        *(f"| {end} | {count} |" for end, count in sorted(counts.ended.items())),
        f"| calls of a gateway made again while it restarted | {counts.retries} |",
        *(["", "Problems:", "", *(f"- {text}" for text in problems)] if problems else []),
        "",
        "![Memory, descriptors and threads](soak.png)",
    ]
    return lines, good


@click.command()
@click.option("--minutes", type=NumberRange(min=0.05), default=60.0, show_default=True)
@click.option("--rate", type=NumberRange(min=0.1), default=6.0, show_default=True, help="Requests a second.")
@click.option("--sample-every", type=NumberRange(min=0.1), default=5.0, show_default=True, help="Seconds.")
@click.option("--restart-every", type=NumberRange(min=1), default=75.0, show_default=True, help="Seconds.")
@click.option("--visit-every", type=NumberRange(min=1), default=20.0, show_default=True, help="Seconds.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the traffic.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/benchmarks/soak"), show_default=True)
def main(
    minutes: float,
    rate: float,
    sample_every: float,
    restart_every: float,
    visit_every: float,
    seed: int,
    out: Path,
) -> None:
    """Soak a fleet of real processes in mixed traffic, and see whether anything grows."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    stage, counts = soak(
        minutes * 60,
        out,
        rate=rate,
        sample_every=sample_every,
        restart_every=restart_every,
        visit_every=visit_every,
        seed=seed,
    )
    (out / "events.json").write_text(json.dumps(stage.events))
    taken = samples.read(out / "samples.csv")
    found = verdict.lines(taken)
    lines, good = report(stage, counts, found, minutes * 60)
    (out / "report.md").write_text("\n".join(lines) + "\n")
    plot.plot(taken, out / "soak.png")
    click.echo("\n".join(lines))
    click.echo(f"wrote {out}/report.md, samples.csv, events.json, soak.png, logs/")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
