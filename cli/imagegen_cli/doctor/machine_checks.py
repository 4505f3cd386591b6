"""Checks of this machine: pure functions of the probes' facts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imagegen_cli.doctor.findings import Finding, ok, problem, warning

GIB = 1024**3
_DISK_PROBLEM, _DISK_WARNING = 1 * GIB, 20 * GIB
"""Free bytes below which disk space is a problem or a warning; a large model takes 7 to 35 GiB."""
_MEMORY_PROBLEM, _MEMORY_WARNING = 1 * GIB, 4 * GIB
"""Available bytes below which memory is a problem or a warning; a worker needs host memory besides its GPU's."""
_BROKER = "imagegen-broker"


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """A key file given by `option`: `error` if it is invalid, `mode` (permissions) if it is secret."""

    option: str
    path: Path | None
    error: str = ""
    mode: int | None = None


@dataclass(frozen=True, slots=True)
class PortFacts:
    """A port of a local broker. `holder`: name of the listening process, "" for another user's."""

    port: int
    option: str
    holder: str | None = None
    pid: int | None = None
    broker_answers: bool = False


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """`cards` on the PCI bus; GPUs listed by `nvidia-smi`, or its `error`; GPUs visible to imagegen-worker."""

    cards: int = 0
    listed: Sequence[str] | None = None
    error: str = ""
    visible: Sequence[str] | None = None
    hidden_by: str | None = None
    """Value of CUDA_VISIBLE_DEVICES."""


@dataclass(frozen=True, slots=True)
class TorchFacts:
    """Version and devices of torch; `error` if it cannot be imported, `reason` why it sees no device."""

    version: str = ""
    cuda: str | None = None
    devices: int = 0
    reason: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class SpaceFacts:
    """Free and total bytes. `needed`: a worker may run on this machine."""

    free: int
    total: int
    needed: bool
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Exit status and last line of imagegen-worker's check of a model; None if it is not installed."""

    source: str
    status: int | None
    output: str = ""


def check_key(facts: KeyFacts) -> Finding:
    """Check that a key file is valid, and that a secret one is readable only by its owner."""
    if facts.error:
        return problem(
            "key", f"{facts.option}: {facts.error}", "generate keys with imagegen keygen, or correct the path"
        )
    if facts.mode is not None and facts.mode & 0o077:
        message = f"{facts.option}: {facts.path} is readable by other users (mode {facts.mode:03o})"
        return problem("key", message, f"chmod 600 {facts.path}; generate a new pair if others may have read it")
    return ok("key", f"{facts.option}: {facts.path}")


def check_port(facts: PortFacts) -> Finding:
    """Check that a port for a local broker is free, or used by the broker."""
    name = f"port {facts.port} ({facts.option})"
    if facts.holder is None:
        return ok("port", f"{name} is free")
    if facts.holder == _BROKER:
        return ok("port", f"{name} is used by the broker, process {facts.pid}")
    who = f"{facts.holder}, process {facts.pid}" if facts.holder else "a process of another user"
    message = f"{name} is used by {who}"
    if facts.broker_answers and facts.option == "--frontend":
        return ok("port", f"{message}; a broker answers there")
    if facts.broker_answers:
        return warning("port", message, f"none if the broker has another {facts.option}")
    remedy = f"start the broker with another {facts.option}"
    return problem("port", message, f"stop that process, or {remedy}" if facts.holder else remedy)


def check_gpu(facts: GpuFacts) -> Finding:
    """Check the driver and the GPUs that a worker would use."""
    seen = f"{facts.cards} NVIDIA card{'s' if facts.cards != 1 else ''} on the bus"
    if facts.error:
        remedy = "load or reinstall NVIDIA's driver; after an upgrade of the driver, reboot"
        return problem("gpu", f"NVML does not work: {facts.error}", remedy)
    if facts.listed is None:
        if facts.cards:
            remedy = "install NVIDIA's driver; start containers with --gpus all"
            return problem("gpu", f"{seen}, but no driver (nvidia-smi was not found)", remedy)
        return ok("gpu", "no NVIDIA GPU; a worker on this machine runs on the CPU")
    if not facts.listed:
        return problem("gpu", f"{seen}, but the driver lists none", "see dmesg for errors of the driver")
    names = "; ".join(facts.listed)
    if facts.visible is None:
        return ok("gpu", names)
    if not facts.visible:
        message = f"imagegen-worker sees none of: {names}"
        if facts.hidden_by is not None:
            return problem(
                "gpu", f"{message} (CUDA_VISIBLE_DEVICES={facts.hidden_by!r})", "unset CUDA_VISIBLE_DEVICES"
            )
        return problem(
            "gpu", message, "install nvidia-ml-py in the environment of imagegen-worker: pip install '.[worker]'"
        )
    return ok("gpu", f"{names}; imagegen-worker sees {len(facts.visible)}")


def check_torch(facts: TorchFacts, gpu: GpuFacts) -> Finding:
    """Check that torch, CUDA and the driver match."""
    if facts.error:
        remedy = "reinstall it: pip install --force-reinstall torch"
        return problem("torch", f"torch cannot be imported: {facts.error}", remedy)
    if not gpu.listed:
        return ok("torch", f"torch {facts.version}, on the CPU")
    if facts.cuda is None:
        remedy = "install a build with CUDA (https://pytorch.org/get-started)"
        return problem("torch", f"torch {facts.version} is built without CUDA", remedy)
    name = f"torch {facts.version} for CUDA {facts.cuda}"
    if gpu.visible is not None and not gpu.visible:
        return ok("torch", f"{name}; not tested, since no GPU is visible")
    if not facts.devices:
        reason = f": {facts.reason}" if facts.reason else ""
        remedy = "upgrade the driver, or install a torch for the CUDA version that nvidia-smi shows"
        return problem("torch", f"{name} sees no GPU{reason}", remedy)
    return ok("torch", f"{name} sees {facts.devices} GPU{'s' if facts.devices != 1 else ''}")


def check_disk(facts: SpaceFacts) -> Finding:
    """Check the disk space for models."""
    message = f"{_gib(facts.free)} of {_gib(facts.total)} free for models ({facts.path})"
    remedy = "remove models (hf cache), or set HF_HOME to another disk"
    return _space("disk", facts, message, remedy, _DISK_PROBLEM, _DISK_WARNING)


def check_memory(facts: SpaceFacts) -> Finding:
    """Check the memory for a worker."""
    message = f"{_gib(facts.free)} of {_gib(facts.total)} memory available"
    remedy = "stop other programs, or run fewer workers on this machine"
    return _space("memory", facts, message, remedy, _MEMORY_PROBLEM, _MEMORY_WARNING)


def _space(
    check: str, facts: SpaceFacts, message: str, remedy: str, problem_below: int, warning_below: int
) -> Finding:
    if facts.needed and facts.free < problem_below:
        return problem(check, message, remedy)
    if facts.needed and facts.free < warning_below:
        return warning(check, message, remedy)
    return ok(check, message)


def check_model(facts: ModelFacts) -> Finding:
    """Check that imagegen-worker accepts a model."""
    if facts.status is None:
        remedy = "pip install '.[worker]', or check on the worker's host"
        return problem("model files", f"{facts.source}: imagegen-worker is unavailable: {facts.output}", remedy)
    if facts.status:
        error = facts.output.removeprefix("error: ")
        return problem("model files", f"{facts.source}: {error}", "correct --model, or download the files")
    return ok("model files", f"{facts.source}: accepted by imagegen-worker")


def ports_of(frontend: int, http: int | None) -> Iterator[tuple[int, str]]:
    """Yield the ports of a broker and their options; all of them only if the frontend is the default."""
    is_default = frontend == 5555
    yield frontend, "--frontend"
    if is_default:
        yield 5556, "--backend"
    if http is not None or is_default:
        yield http or 8080, "--http"


def cache_folder(environment: Mapping[str, str], home: Path) -> Path:
    """Return the folder of the Hugging Face cache, as huggingface_hub does."""
    if cache := environment.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    default = Path(environment.get("XDG_CACHE_HOME") or home / ".cache") / "huggingface"
    return Path(environment.get("HF_HOME") or default).expanduser() / "hub"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
