"""Create `.venv-gpu` on a machine that has torch but no network, from the wheels of `make gpu-wheels`: `make gpu`.

The environment sees all packages of the Python that runs this program, even if that one is a virtual environment
itself; the wheels come first. This project is not installed: its folders are on the path.
"""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
WHEELS = ROOT / "out/gpu-wheels"
FOLDER = ROOT / ".venv-gpu"
SOURCES = ("common", "protocol", "broker", "gpu_worker", "client", "cli", "gateway")


def create(folder: Path, wheels: list[Path]) -> Path:
    """Create the environment; return its Python. Raises `CalledProcessError` if a wheel does not fit."""
    venv.EnvBuilder(system_site_packages=True, clear=True).create(folder)
    python = folder / "bin" / "python"
    own = next(folder.glob("lib/python*/site-packages"))
    lines = [str(ROOT), *(str(ROOT / source) for source in SOURCES)]
    # `venv` takes the packages of the base installation, which are not those of a virtual environment.
    lines += [
        f"import site; site.addsitedir({path!r})" for path in {*map(sysconfig.get_path, ("purelib", "platlib"))}
    ]
    (own / "imagegen.pth").write_text("\n".join(lines) + "\n")
    words = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*words, "--ignore-installed", *map(str, wheels)], check=True)
    return python


def main() -> None:
    """Create the environment from all wheels of the folder."""
    wheels = sorted(WHEELS.glob("*.whl"))
    if not wheels:
        sys.exit(f"{WHEELS} has no wheels; run make gpu-wheels on a machine with network")
    python = create(FOLDER, wheels)
    subprocess.run([python, "-c", "import diffusers, torch, zmq"], check=True)


if __name__ == "__main__":
    main()
