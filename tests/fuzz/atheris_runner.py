"""The runner with atheris: inputs that reach new code are kept and changed further."""

import sys
import tempfile
from pathlib import Path

import atheris

_INSTRUMENTED = [
    *(f"imagegen_{name}" for name in ("broker", "cli", "client", "common", "gateway", "protocol", "worker")),
    "python_multipart",
    "starlette.formparsers",
    "tests.fuzz.target",
    "zmq.auth",
]


def fuzz(name: str, seconds: float, findings_folder: Path, corpus: Path) -> None:
    """Fuzz a target; save its findings, and the inputs that reach new code in `corpus`. Does not return.

    Import no module of the product before the call.
    """
    with atheris.instrument_imports(include=_INSTRUMENTED):
        from tests.fuzz.findings import Findings
        from tests.fuzz.target import find_target

        target = find_target(name)  # imports the product
    findings = Findings(findings_folder)
    corpus.mkdir(parents=True, exist_ok=True)
    findings_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as seeds:
        for number, data in enumerate((*target.seeds, *(path.read_bytes() for path in target.regressions))):
            Path(seeds, str(number)).write_bytes(data)
        options = [
            f"-max_total_time={max(1, round(seconds))}",
            f"-artifact_prefix={findings_folder}/",
            f"-max_len={2000 if target.is_script else 100_000}",
            # Long inputs from the beginning: a short script does not get far.
            "-len_control=0",
            # A hang is found by `hang_guard`, whose signal libFuzzer would use otherwise.
            "-timeout=0",
            "-rss_limit_mb=4096",
        ]
        atheris.Setup([sys.argv[0], *options, str(corpus), seeds], lambda data: findings.run(target.run, data))
        atheris.Fuzz()
