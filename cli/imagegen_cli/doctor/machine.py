"""Is this machine well? Pure checks of what was found on it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imagegen_cli.doctor.findings import Finding, ok, problem, warning

GIB = 1024**3
_DISK_NONE, _DISK_LITTLE = 1 * GIB, 20 * GIB
"""A large model takes 7 to 35 GiB."""
_MEMORY_NONE, _MEMORY_LITTLE = 1 * GIB, 4 * GIB
"""What a worker takes beside its GPU."""
_BROKER = "imagegen-broker"


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """A key file as an option named it: `error` if it can't be used, `mode` of its permissions if it is secret."""

    option: str
    path: Path | None
    error: str = ""
    mode: int | None = None


@dataclass(frozen=True, slots=True)
class PortFacts:
    """A port of a broker's host. `holder`: the process that listens there, "" for one of another user's."""

    port: int
    option: str
    holder: str | None = None
    pid: int | None = None
    broker_answers: bool = False


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """`cards` on the PCI bus; what `nvidia-smi` lists, or its `error`; what imagegen-worker sees, if asked."""

    cards: int = 0
    listed: Sequence[str] | None = None
    error: str = ""
    visible: Sequence[str] | None = None
    hidden_by: str | None = None
    """What CUDA_VISIBLE_DEVICES says."""


@dataclass(frozen=True, slots=True)
class TorchFacts:
    """What torch says of itself; `error` if it can't be imported, `reason` why it sees no device."""

    version: str = ""
    cuda: str | None = None
    devices: int = 0
    reason: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class RoomFacts:
    """Free and total bytes. `needed`: this machine may run a worker, which needs them."""

    free: int
    total: int
    needed: bool
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The status with which imagegen-worker checked a model, and its last line; None: it is not installed."""

    source: str
    status: int | None
    said: str = ""


def check_key(facts: KeyFacts) -> Finding:
    """Say whether a key file can be used, and is kept secret if it should be."""
    if facts.error:
        return problem(
            "key", f"{facts.option}: {facts.error}", "make keys with imagegen keygen, or correct the path"
        )
    if facts.mode is not None and facts.mode & 0o077:
        words = f"{facts.option}: {facts.path} can be read by others (mode {facts.mode:03o})"
        return problem("key", words, f"chmod 600 {facts.path}; make a new pair if others may have read it")
    return ok("key", f"{facts.option}: {facts.path}")


def check_port(facts: PortFacts) -> Finding:
    """Say who has a port that a broker of this machine would take."""
    name = f"port {facts.port} ({facts.option})"
    if facts.holder is None:
        return ok("port", f"{name} is free")
    if facts.holder == _BROKER:
        return ok("port", f"{name} is the broker's, process {facts.pid}")
    who = f"{facts.holder}, process {facts.pid}" if facts.holder else "a process of another user"
    words = f"{name} is taken by {who}"
    if facts.broker_answers and facts.option == "--frontend":
        return ok("port", f"{words}; a broker answers there")
    if facts.broker_answers:
        return warning("port", words, f"nothing, if the broker has another {facts.option}")
    remedy = f"start the broker with another {facts.option}"
    return problem("port", words, f"end that process, or {remedy}" if facts.holder else remedy)


def check_gpu(facts: GpuFacts) -> Finding:
    """Say whether the driver is there and which GPUs a worker would take."""
    seen = f"{facts.cards} NVIDIA card{'s' if facts.cards != 1 else ''} on the bus"
    if facts.error:
        remedy = "load or reinstall NVIDIA's driver; after an upgrade of the driver, reboot"
        return problem("gpu", f"NVML does not work: {facts.error}", remedy)
    if facts.listed is None:
        if facts.cards:
            remedy = "install NVIDIA's driver; start a container with the GPUs (--gpus all)"
            return problem("gpu", f"{seen}, and no driver (nvidia-smi is not there)", remedy)
        return ok("gpu", "no NVIDIA GPU in this machine; a worker here runs on the CPU")
    if not facts.listed:
        return problem("gpu", f"{seen}, and the driver lists none", "see dmesg for why the driver lost them")
    told = "; ".join(facts.listed)
    if facts.visible is None:
        return ok("gpu", told)
    if not facts.visible:
        words = f"imagegen-worker sees none of: {told}"
        if facts.hidden_by is not None:
            return problem(
                "gpu", f"{words} (CUDA_VISIBLE_DEVICES={facts.hidden_by!r})", "unset CUDA_VISIBLE_DEVICES"
            )
        return problem("gpu", words, "install nvidia-ml-py beside imagegen-worker: pip install '.[worker]'")
    return ok("gpu", f"{told}; imagegen-worker sees {len(facts.visible)}")


def check_torch(facts: TorchFacts, gpu: GpuFacts) -> Finding:
    """Say whether torch, CUDA and the driver fit one another."""
    if facts.error:
        remedy = "install it anew: pip install --force-reinstall torch"
        return problem("torch", f"torch can't be imported: {facts.error}", remedy)
    if not gpu.listed:
        return ok("torch", f"torch {facts.version}, on the CPU")
    if facts.cuda is None:
        remedy = "install a build with CUDA (https://pytorch.org/get-started)"
        return problem("torch", f"torch {facts.version} is built without CUDA", remedy)
    name = f"torch {facts.version} for CUDA {facts.cuda}"
    if gpu.visible is not None and not gpu.visible:
        return ok("torch", f"{name}; no GPU is visible to try it on")
    if not facts.devices:
        reason = f": {facts.reason}" if facts.reason else ""
        remedy = "upgrade the driver, or install a torch for the CUDA version that nvidia-smi shows"
        return problem("torch", f"{name} sees no GPU{reason}", remedy)
    return ok("torch", f"{name} sees {facts.devices} GPU{'s' if facts.devices != 1 else ''}")


def check_disk(facts: RoomFacts) -> Finding:
    """Say whether there is room for models."""
    words = f"{_gib(facts.free)} of {_gib(facts.total)} free for models ({facts.path})"
    remedy = "remove models (hf cache), or name another disk with HF_HOME"
    return _room("disk", facts, words, remedy, _DISK_NONE, _DISK_LITTLE)


def check_memory(facts: RoomFacts) -> Finding:
    """Say whether there is memory for a worker."""
    words = f"{_gib(facts.free)} of {_gib(facts.total)} memory available"
    remedy = "end what takes it, or run fewer workers here"
    return _room("memory", facts, words, remedy, _MEMORY_NONE, _MEMORY_LITTLE)


def _room(check: str, facts: RoomFacts, words: str, remedy: str, none: int, little: int) -> Finding:
    if facts.needed and facts.free < none:
        return problem(check, words, remedy)
    if facts.needed and facts.free < little:
        return warning(check, words, remedy)
    return ok(check, words)


def check_model(facts: ModelFacts) -> Finding:
    """Say what imagegen-worker thinks of a model's source."""
    if facts.status is None:
        remedy = "pip install '.[worker]' here, or ask where the worker runs"
        return problem("model files", f"{facts.source}: imagegen-worker can't be asked: {facts.said}", remedy)
    if facts.status:
        said = facts.said.removeprefix("Error: ")
        return problem("model files", f"{facts.source}: {said}", "correct --model, or get the files")
    return ok("model files", f"{facts.source}: imagegen-worker takes it")


def ports_of(frontend: int, http: int | None) -> Iterator[tuple[int, str]]:
    """Yield the ports that a broker with this frontend takes, and their options: all usual ones, or those told."""
    usual = frontend == 5555
    yield frontend, "--frontend"
    if usual:
        yield 5556, "--backend"
    if http is not None or usual:
        yield http or 8080, "--http"


def cache_folder(environment: Mapping[str, str], home: Path) -> Path:
    """Return the folder of the hub's cache, as huggingface_hub finds it."""
    if cache := environment.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    usual = Path(environment.get("XDG_CACHE_HOME") or home / ".cache") / "huggingface"
    return Path(environment.get("HF_HOME") or usual).expanduser() / "hub"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
