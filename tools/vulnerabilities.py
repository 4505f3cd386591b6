"""Compare the pinned packages with a service of known vulnerabilities, by pip-audit.

`python -m tools.vulnerabilities` exits with 1 if there are vulnerabilities that `tool.imagegen.vulnerabilities` in
`pyproject.toml` does not accept, or packages that the service does not know. It exits with 2 if no service can be
reached; with `--skip-unreachable` it prints a line and exits with 0.
"""

import argparse
import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = ("constraints.txt", "deploy/docker/locks/worker.txt", "deploy/docker/locks/gateway.txt")
"""Files with all pinned versions, those of the images included."""
SERVICES = ("pypi", "osv")
"""Services of pip-audit, in the order of preference."""


class UnreachableError(Exception):
    """No service could be asked; the message gives the reason."""


def problems(output: str, errors: str, ignored: Mapping[str, str]) -> list[str]:
    """Return a line for each problem that the output of pip-audit states. Raises `UnreachableError`."""
    try:
        packages = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        raise UnreachableError((errors.strip().splitlines() or ["pip-audit printed nothing"])[-1][:120]) from None
    skipped = [package for package in packages if "skip_reason" in package]
    if packages and len(skipped) == len(packages):
        # pip-audit calls that "no known vulnerabilities".
        raise UnreachableError(f"the service knows no package: {skipped[0]['skip_reason']:.80}")
    found = [f"{package['name']}: not compared: {package['skip_reason']}" for package in skipped]
    for package in packages:
        for each in package.get("vulns", ()):
            if not {each["id"], *each.get("aliases", ())} & ignored.keys():
                fixed = ", ".join(each["fix_versions"]) or "no version"
                found.append(f"{package['name']} {package['version']}: {each['id']}, fixed in {fixed}")
    return found


def _audit(file: str, ignored: Mapping[str, str]) -> list[str]:
    """Return the problems of a file, from the first service that answers. Raises `UnreachableError`."""
    reasons = []
    for service in SERVICES:
        words = [
            sys.executable,
            "-m",
            "pip_audit",
            "--requirement",
            str(ROOT / file),
            "--vulnerability-service",
            service,
        ]
        words += ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
        done = subprocess.run(words, capture_output=True, text=True)
        try:
            return problems(done.stdout, done.stderr, ignored)
        except UnreachableError as error:
            reasons.append(f"{service}: {error}")
    raise UnreachableError("; ".join(reasons))


def main(arguments: list[str]) -> int:
    """Audit all files; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.vulnerabilities")
    parser.add_argument("--skip-unreachable", action="store_true", help="exit with 0 if no service can be reached")
    options = parser.parse_args(arguments)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    ignored = project["tool"]["imagegen"]["vulnerabilities"]["ignored"]
    try:
        found = [f"{file}: {line}" for file in FILES for line in _audit(file, ignored)]
    except UnreachableError as error:
        words = "skipped" if options.skip_unreachable else "failed"
        print(
            f"comparison with known vulnerabilities {words}: no service can be reached: {error}", file=sys.stderr
        )
        return 0 if options.skip_unreachable else 2
    for line in found:
        print(line)
    print(f"{len(found)} problems in the pinned packages")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
