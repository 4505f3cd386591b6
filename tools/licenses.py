"""Check the licenses of all installed packages against `tool.imagegen.licenses` in `pyproject.toml`.

`python -m tools.licenses` prints the packages whose license is unknown or not allowed, and exits with 1 if there
are any.
"""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def read_rules() -> dict[str, Any]:
    """Return the table `tool.imagegen.licenses`."""
    rules: dict[str, Any] = tomllib.loads(PYPROJECT.read_text())["tool"]["imagegen"]["licenses"]
    return rules


def problems(packages: Sequence[Mapping[str, str]], rules: Mapping[str, Any]) -> list[str]:
    """Return a line for each package that is not allowed. `packages`: the JSON output of pip-licenses."""
    found = []
    for package in packages:
        name, license_ = package["Name"], package["License"]
        if not is_allowed(license_, rules["allowed"]) and not _is_exception(name, license_, rules["exceptions"]):
            found.append(f"{name} {package['Version']}: {license_}")
    return found


def is_allowed(license_: str, allowed: Sequence[str]) -> bool:
    """Return whether a license is allowed: an SPDX expression, or names separated by semicolons."""
    if license_ in allowed:
        return True
    # AND and a semicolon: all of them apply. OR: one of them may be chosen.
    text = license_.replace("(", " ").replace(")", " ") if re.search(r" (AND|OR) ", license_) else license_
    every = [part.strip() for part in re.split(r" AND |;", text)]
    return all(any(choice.strip() in allowed for choice in part.split(" OR ")) for part in every)


def _is_exception(name: str, license_: str, exceptions: Mapping[str, Mapping[str, str]]) -> bool:
    normal = re.sub(r"[-_.]+", "-", name).lower()
    return any(
        fnmatchcase(normal, pattern) and each["license"] in ("*", license_) for pattern, each in exceptions.items()
    )


def main() -> int:
    """Check this environment; return the exit status."""
    words = [sys.executable, "-m", "piplicenses", "--format=json", "--from=mixed", "--with-system"]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True)
    packages = json.loads(done.stdout)
    own = "imagegen-fleet"
    found = problems([package for package in packages if package["Name"] != own], read_rules())
    for line in found:
        print(line)
    if found:
        print("license not allowed: see [tool.imagegen.licenses] in pyproject.toml", file=sys.stderr)
        return 1
    print(f"licenses of {len(packages)} packages are allowed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
