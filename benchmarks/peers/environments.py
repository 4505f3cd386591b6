"""A virtual environment for each peer, with the versions of its requirements."""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
_STAMP = "installed"


def versions(name: str) -> str:
    """Return what is asked for of a peer, as `name version, …`."""
    lines = (REQUIREMENTS / f"{name}.txt").read_text().splitlines()
    asked = lines[1 : next(at for at, line in enumerate(lines) if at and line.startswith("#"))]
    return ", ".join(line.replace("==", " ") for line in asked)


def python_of(name: str, folder: Path) -> Path:
    """Return the Python of a peer's environment, made first where it is not there or of other requirements.

    Raises `subprocess.CalledProcessError` when something can't be installed; pip has said what on stderr.
    """
    place, requirements = folder / name, REQUIREMENTS / f"{name}.txt"
    python = place / "bin" / "python"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    stamp = place / _STAMP
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing {name} ...", file=sys.stderr, flush=True)
    venv.create(place, with_pip=True, clear=True)
    # Not the versions of whoever runs this, nor their modules.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--requirement", str(requirements)], check=True, env=environment)
    stamp.write_text(wanted)
    return python
