"""Download the wheels that a machine with torch, but without network, needs for `make gpu`: `make gpu-wheels`.

The wheels are for Python 3.12 on x86_64 Linux, at the versions of constraints.txt, and without dependencies:
torch, numpy, Pillow, transformers, tokenizers, accelerate, peft and safetensors are expected on that machine.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "out/gpu-wheels"
PACKAGES = (
    *("diffusers", "importlib_metadata", "zipp"),
    *("greenlet", "msgspec", "msgpack", "pyzmq", "cachetools", "click", "prometheus_client", "nvidia-ml-py"),
)
PLATFORMS = (
    *("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_26_x86_64", "manylinux_2_24_x86_64"),
    *("manylinux_2_17_x86_64", "manylinux2014_x86_64"),
)
"""pip matches each exactly."""
LIMIT_MIB = 64


def pins(constraints: str) -> dict[str, str]:
    """Return the pinned version by normalised name."""
    pairs = (line.split("==") for line in constraints.splitlines() if "==" in line)
    return {_normalised(name): version for name, version in pairs}


def requirements(constraints: str) -> list[str]:
    """Return `NAME==VERSION` of each package. Raises `KeyError` if constraints.txt lacks one."""
    versions = pins(constraints)
    return [f"{name}=={versions[_normalised(name)]}" for name in PACKAGES]


def _normalised(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def main() -> None:
    """Download the wheels into an empty folder; exit with status 1 if they are too large."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.glob("*.whl"):
        old.unlink()
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    words += ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    words += [word for platform in PLATFORMS for word in ("--platform", platform)]
    subprocess.run(
        [*words, "--dest", str(FOLDER), *requirements((ROOT / "constraints.txt").read_text())], check=True
    )
    mib = sum(wheel.stat().st_size for wheel in FOLDER.glob("*.whl")) / 2**20
    print(f"{len(list(FOLDER.glob('*.whl')))} wheels, {mib:.1f} MiB, in {FOLDER.relative_to(ROOT)}")
    if mib > LIMIT_MIB:
        sys.exit(f"more than {LIMIT_MIB} MiB")


if __name__ == "__main__":
    main()
