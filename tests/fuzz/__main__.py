"""Fuzz all targets for some time: `make fuzz MINUTES=60`. Exits with 1 if there are findings."""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

RUNNERS = ("atheris", "hypothesis")
GRACE_SECONDS = 120
"""Time that a process may take to start, and to end after its last input."""


@dataclass(frozen=True, slots=True)
class Report:
    """The result of fuzzing one target."""

    name: str
    runs: int
    coverage: int | None
    """Number of edges of the code that were reached; None if the runner does not count them."""
    seconds: float
    findings: int
    failure: str = ""
    """Why the process itself failed."""


def default_runner() -> str:
    """Return the runner to use: atheris where it is installed."""
    return RUNNERS[0] if importlib.util.find_spec("atheris") else RUNNERS[1]


def fuzz(runner: str, name: str, seconds: float, folder: Path) -> Report:
    """Fuzz a target in a process of its own, which a crash or a hang of native code ends."""
    findings, log = folder / name, folder / "logs" / f"{name}.txt"
    shutil.rmtree(findings, ignore_errors=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "tests.fuzz.run_target", runner, name, str(seconds), str(findings)]
    failure = ""
    with log.open("wb") as output:
        try:
            done = subprocess.run(
                [*words, str(folder / "corpus" / name)],
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=seconds + GRACE_SECONDS,
            )
            failure = f"exit status {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            failure = "no end: see the last line of its log"
    text = log.read_text(errors="replace")
    runs = re.findall(r"^Done (\d+) runs|^#(\d+)", text, re.MULTILINE)
    coverage = re.findall(r"cov: (\d+)", text)
    return Report(
        name,
        int("".join(runs[-1])) if runs else 0,
        int(coverage[-1]) if coverage else None,
        seconds,
        len(list(findings.glob("*.txt"))) + bool(failure),
        failure,
    )


def table(reports: list[Report]) -> str:
    """Return a table of the results."""
    rows = [("target", "runs", "runs/s", "edges", "findings")]
    rows += [
        (
            report.name,
            str(report.runs),
            f"{report.runs / report.seconds:.0f}",
            "-" if report.coverage is None else str(report.coverage),
            f"{report.findings} {report.failure}".strip(),
        )
        for report in reports
    ]
    return "\n".join(f"{row[0]:<28}{row[1]:>10}{row[2]:>8}{row[3]:>8}  {row[4]}" for row in rows)


def main(arguments: list[str]) -> int:
    """Fuzz, print a table, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="total time, spread over all targets")
    parser.add_argument("--target", action="append", help="name of a target; default: all")
    parser.add_argument("--runner", choices=RUNNERS, default=default_runner())
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="targets at a time")
    parser.add_argument("--folder", type=Path, default=Path("out/fuzz"))
    options = parser.parse_args(arguments)
    names = options.target or _names()
    jobs = min(options.jobs, len(names))
    seconds = options.minutes * 60 * jobs / len(names)
    print(
        f"fuzzing {len(names)} targets with {options.runner}, {seconds:.0f} s each, {jobs} at a time", flush=True
    )
    with ThreadPoolExecutor(jobs) as threads:
        reports = list(threads.map(lambda name: fuzz(options.runner, name, seconds, options.folder), names))
    print(table(reports))
    findings = sum(report.findings for report in reports)
    print(f"{findings} findings" + (f": inputs and tracebacks in {options.folder}/TARGET/" if findings else ""))
    return int(findings > 0)


def _names() -> list[str]:
    from tests.fuzz.targets import TARGETS

    return list(TARGETS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
