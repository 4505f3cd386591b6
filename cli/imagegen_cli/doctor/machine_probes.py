"""Probes of this machine. Other roles are run as processes; nothing of theirs is imported."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from imagegen_cli.doctor.machine_checks import GpuFacts, KeyFacts, ModelFacts, SpaceFacts, TorchFacts, cache_folder
from imagegen_protocol.keys import KeyFileError, read_pair, read_public

_NVIDIA = "0x10de"
_DISPLAY_CLASS = "0x03"
_SECONDS = 120.0
"""Time limit of a process: importing torch is slow on a busy machine."""
_TORCH_QUERY = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
reason = " ".join(str(caught[-1].message).split()) if caught and not devices else ""
print(json.dumps([torch.__version__, torch.version.cuda, devices, reason]))
"""


def inspect_keys(key: Path | None, broker_key: Path | None) -> list[KeyFacts]:
    """Read the files of `--key` and `--broker-key`; return nothing if neither is given."""
    if key is None and broker_key is None:
        return []
    facts = []
    for option, path in (("--key", key), ("--broker-key", broker_key)):
        if path is None:
            other = "--key" if key is not None else "--broker-key"
            facts.append(KeyFacts(option, None, f"is missing; it is required with {other}"))
            continue
        try:
            if option == "--key":
                read_pair(path)
            else:
                read_public(path)
        except KeyFileError as error:
            facts.append(KeyFacts(option, path, str(error)))
            continue
        facts.append(KeyFacts(option, path, mode=path.stat().st_mode & 0o777 if option == "--key" else None))
    return facts


def inspect_gpus(devices: Path = Path("/sys/bus/pci/devices")) -> GpuFacts:
    """Count the NVIDIA cards, and query the driver and imagegen-worker."""
    cards = sum(_is_card(device) for device in devices.glob("*"))
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return GpuFacts(cards)
    status, out, last = _run([smi, "--query-gpu=index,name,driver_version", "--format=csv,noheader"])
    if status:
        return GpuFacts(cards, error=last)
    listed = [f"GPU {line}" for line in out.splitlines() if line.strip()]
    hidden_by = os.environ.get("CUDA_VISIBLE_DEVICES")
    worker = find_program("imagegen-worker")
    if worker is None:
        return GpuFacts(cards, listed)
    status, out, last = _run([worker, "--list-gpus"])
    visible = None if status else [json.loads(line)["label"] for line in out.splitlines()]
    return GpuFacts(cards, listed, visible=visible, hidden_by=hidden_by)


def _is_card(device: Path) -> bool:
    try:
        vendor, kind = (device / "vendor").read_text(), (device / "class").read_text()
    except OSError:
        return False
    return vendor.strip() == _NVIDIA and kind.startswith(_DISPLAY_CLASS)


def is_torch_installed() -> bool:
    """Return whether torch is installed in this environment, so that a worker may run here."""
    return importlib.util.find_spec("torch") is not None


def inspect_torch(python: str = sys.executable) -> TorchFacts:
    """Query torch in a process of its own."""
    status, out, last = _run([python, "-P", "-c", _TORCH_QUERY])
    if status:
        return TorchFacts(error=last)
    version, cuda, devices, reason = json.loads(out.splitlines()[-1])
    return TorchFacts(version, cuda, devices, reason)


def inspect_disk(*, needed: bool) -> SpaceFacts:
    """Return the free and total space of the disk of the Hugging Face cache."""
    folder = cache_folder(os.environ, Path.home())
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    usage = shutil.disk_usage(existing)
    return SpaceFacts(usage.free, usage.total, needed, folder)


def inspect_memory(*, needed: bool) -> SpaceFacts:
    """Return the machine's available and total memory."""
    memory = psutil.virtual_memory()
    return SpaceFacts(memory.available, memory.total, needed)


def inspect_model(source: str) -> ModelFacts:
    """Check the source of a model with imagegen-worker."""
    worker = find_program("imagegen-worker")
    if worker is None:
        return ModelFacts(source, None, "not installed")
    status, _, last = _run([worker, "--check-config", "--model", source])
    return ModelFacts(source, status, last)


def find_program(program: str) -> str | None:
    """Return the path of one of the project's commands: next to this Python, else on the PATH; else None."""
    own = Path(sys.executable).with_name(program)
    return str(own) if own.is_file() else shutil.which(program)


def _run(words: Sequence[str]) -> tuple[int, str, str]:
    """Run a command; return its status, its output, and its last line."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return 1, "", f"{Path(words[0]).name} did not finish within {_SECONDS:.0f} s"
    except OSError as error:
        return 1, "", str(error)
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return done.returncode, done.stdout, lines[-1] if lines else f"status {done.returncode}"
