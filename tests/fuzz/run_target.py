"""Fuzz one target in this process: `python -m tests.fuzz.run_target RUNNER TARGET SECONDS FINDINGS CORPUS`."""

import logging
import sys
from pathlib import Path


def main(runner: str, name: str, seconds: str, findings: str, corpus: str) -> None:
    """Fuzz, and print the number of runs as libFuzzer does."""
    logging.disable(logging.CRITICAL)
    if runner == "atheris":
        from tests.fuzz import atheris_runner

        atheris_runner.fuzz(name, float(seconds), Path(findings), Path(corpus))
        return
    from tests.fuzz import hypothesis_runner
    from tests.fuzz.findings import Findings
    from tests.fuzz.target import find_target

    found = Findings(Path(findings))
    target = find_target(name)
    hypothesis_runner.fuzz(target, float(seconds), found)
    if gateway := sys.modules.get("tests.fuzz.gateway"):
        gateway.close()
    print(f"Done {found.runs} runs in {seconds} second(s)", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
