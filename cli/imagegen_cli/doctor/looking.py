"""Look at this machine. What belongs to the other roles is asked as a process; nothing of theirs is imported."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from imagegen_cli.doctor.machine import GpuFacts, KeyFacts, ModelFacts, RoomFacts, TorchFacts, cache_folder
from imagegen_protocol.keys import KeyFileError, read_pair, read_public

_NVIDIA = "0x10de"
_DISPLAY_CLASS = "0x03"
_SECONDS = 120.0
"""Importing torch may take as long on a busy machine."""
_ASK_TORCH = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
reason = " ".join(str(caught[-1].message).split()) if caught and not devices else ""
print(json.dumps([torch.__version__, torch.version.cuda, devices, reason]))
"""


def look_at_keys(key: Path | None, broker_key: Path | None) -> list[KeyFacts]:
    """Read what `--key` and `--broker-key` name; nothing of both if neither does."""
    if key is None and broker_key is None:
        return []
    facts = []
    for option, path in (("--key", key), ("--broker-key", broker_key)):
        if path is None:
            other = "--key" if key is not None else "--broker-key"
            facts.append(KeyFacts(option, None, f"is missing; it goes together with {other}"))
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


def look_at_gpus(devices: Path = Path("/sys/bus/pci/devices")) -> GpuFacts:
    """Count NVIDIA's cards, and ask the driver and imagegen-worker for theirs."""
    cards = sum(_is_card(device) for device in devices.glob("*"))
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return GpuFacts(cards)
    status, out, said = _run([smi, "--query-gpu=index,name,driver_version", "--format=csv,noheader"])
    if status:
        return GpuFacts(cards, error=said)
    listed = [f"GPU {line}" for line in out.splitlines() if line.strip()]
    hidden_by = os.environ.get("CUDA_VISIBLE_DEVICES")
    worker = beside("imagegen-worker")
    if worker is None:
        return GpuFacts(cards, listed)
    status, out, said = _run([worker, "--list-gpus"])
    visible = None if status else [json.loads(line)["label"] for line in out.splitlines()]
    return GpuFacts(cards, listed, visible=visible, hidden_by=hidden_by)


def _is_card(device: Path) -> bool:
    try:
        vendor, kind = (device / "vendor").read_text(), (device / "class").read_text()
    except OSError:
        return False
    return vendor.strip() == _NVIDIA and kind.startswith(_DISPLAY_CLASS)


def has_torch() -> bool:
    """Say whether torch is installed beside this client, which makes its machine one that may run a worker."""
    return importlib.util.find_spec("torch") is not None


def look_at_torch(python: str = sys.executable) -> TorchFacts:
    """Ask torch in a process of its own."""
    status, out, said = _run([python, "-P", "-c", _ASK_TORCH])
    if status:
        return TorchFacts(error=said)
    version, cuda, devices, reason = json.loads(out.splitlines()[-1])
    return TorchFacts(version, cuda, devices, reason)


def look_at_disk(*, needed: bool) -> RoomFacts:
    """Return the room where the hub's cache is, or will be."""
    folder = cache_folder(os.environ, Path.home())
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    usage = shutil.disk_usage(there)
    return RoomFacts(usage.free, usage.total, needed, folder)


def look_at_memory(*, needed: bool) -> RoomFacts:
    """Return the machine's available and total memory."""
    memory = psutil.virtual_memory()
    return RoomFacts(memory.available, memory.total, needed)


def look_at_model(source: str) -> ModelFacts:
    """Let imagegen-worker check a model's source."""
    worker = beside("imagegen-worker")
    if worker is None:
        return ModelFacts(source, None, "it is not installed")
    status, _, said = _run([worker, "--check-config", "--model", source])
    return ModelFacts(source, status, said)


def beside(program: str) -> str | None:
    """Return where one of the project's commands is: beside this Python, else on the PATH; None: nowhere."""
    own = Path(sys.executable).with_name(program)
    return str(own) if own.is_file() else shutil.which(program)


def _run(words: Sequence[str]) -> tuple[int, str, str]:
    """Run a command and return its status, its output, and the last line that it said."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return 1, "", f"{Path(words[0]).name} gave no answer within {_SECONDS:.0f} s"
    except OSError as error:
        return 1, "", str(error)
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return done.returncode, done.stdout, said[-1] if said else f"status {done.returncode}"
