"""Write the lock files of the images, `deploy/docker/locks`: the versions of `constraints.txt` with hashes.

`python -m tools.lock` (`make lock`) takes the hashes from the package index, without downloading the packages.
"""

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "deploy/docker/locks"
EXTRAS = {
    "broker": "broker",
    "client": "cli",
    "gateway": "gateway",
    "worker": "worker",
    "worker-simulated": "worker-simulated",
}
"""The extra of each lock file. The file `build` locks what builds the wheel."""


def main() -> None:
    """Write all lock files."""
    LOCKS.mkdir(exist_ok=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for name, extra in EXTRAS.items():
        _compile(name, "pyproject.toml", "--extra", extra)
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder, "build.txt")
        requirements.write_text("\n".join(project["build-system"]["requires"]))
        _compile("build", str(requirements))


def _compile(name: str, *source: str) -> None:
    """Write one lock file. The environments are those of `tool.uv` in `pyproject.toml`."""
    output = LOCKS / f"{name}.txt"
    print(f"writing {output.relative_to(ROOT)} ...", flush=True)
    words = [sys.executable, "-m", "uv", "pip", "compile", *source, "--quiet", "--no-annotate"]
    words += ["--custom-compile-command", "make lock", "--universal", "--python-version", "3.11"]
    words += ["--generate-hashes", "--only-binary", ":all:", "--constraint", "constraints.txt"]
    subprocess.run([*words, "--upgrade", "--output-file", str(output)], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
