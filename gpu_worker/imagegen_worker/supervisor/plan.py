"""Derivation of the host's workers, their names and ports from the settings, `--gpu` and the detected GPUs."""

import dataclasses
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from imagegen_common.addresses import ConfigError
from imagegen_worker.config import WorkerConfig
from imagegen_worker.devices.gpu import Gpu, format_gpus
from imagegen_worker.devices.selection import (
    GpuMissingError,
    VisibleGpus,
    parse_selection,
    select_gpus,
    visible_gpus,
)
from imagegen_worker.supervisor.shell import WorkerCommand

CUDA_VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
SUPERVISED = "IMAGEGEN_SUPERVISED"
"""Environment variable that is set for a supervised worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """One worker to start: its settings, the `--gpu` of its own process, and its environment."""

    config: WorkerConfig
    gpu: str
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The workers of this host. `supervised`: each runs in a child process, even if there is only one."""

    specs: tuple[WorkerSpec, ...]
    supervised: bool
    warnings: tuple[str, ...] = ()


def plan(
    config: WorkerConfig, gpu: str | None, environment: Mapping[str, str], detect: Callable[[], Sequence[Gpu]]
) -> Plan:
    """Return the workers to start. GPUs are detected only if the workers use them.

    Raises `GpuMissingError` for a GPU that does not exist, and `ConfigError` for an invalid `gpu` or port.
    """
    if config.backend == "simulated" or config.device == "cpu":
        return _make_plan(config, _placeholders(gpu), supervised=gpu is not None and "," in gpu)
    detected = detect()
    visible = visible_gpus(detected, environment.get(CUDA_VISIBLE_DEVICES))
    warnings = _warnings(detected, visible, environment)
    if not visible.gpus and gpu is None and config.device == "auto":
        on_cpu = _make_plan(dataclasses.replace(config, device="cpu"), _placeholders(None))
        return dataclasses.replace(on_cpu, warnings=(*warnings, "no GPU found: the model runs on the CPU"))
    if not visible.gpus:
        hidden = f" ({CUDA_VISIBLE_DEVICES} hides {format_gpus(detected)})" if detected else ""
        option = "--device cuda" if gpu is None else f"--gpu {gpu}"
        raise GpuMissingError(f"{option}: no GPU found{hidden}; use --device cpu to run without one")
    gpus = select_gpus(visible.gpus, gpu)
    on_gpus = dataclasses.replace(config, device="cuda")
    return dataclasses.replace(
        _make_plan(on_gpus, gpus, supervised=gpu is None or len(gpus) > 1), warnings=warnings
    )


def worker_commands(plan: Plan, arguments: Sequence[str]) -> list[WorkerCommand]:
    """Return the commands of a plan: this process's own arguments, then each worker's, which override them."""
    return [
        WorkerCommand(
            command=[sys.executable, "-P", "-m", "imagegen_worker", *arguments, *_own_options(spec)],
            environment={**spec.environment, SUPERVISED: "1"},
            log_fields=log_fields(spec.config),
        )
        for spec in plan.specs
    ]


def log_fields(config: WorkerConfig) -> dict[str, object]:
    """Return the log fields that identify a worker and its GPU."""
    optional = {"gpu_uuid": config.gpu_uuid, "gpu_name": config.gpu_name}
    return {
        "worker": config.worker_name,
        "gpu": config.gpu,
        **{key: value for key, value in optional.items() if value is not None},
    }


def _own_options(spec: WorkerSpec) -> list[str]:
    options = ["--gpu", spec.gpu, "--name", spec.config.worker_name]
    if spec.config.http_port is not None:
        options += ["--http-port", str(spec.config.http_port)]
    return options


def _placeholders(gpu: str | None) -> list[Gpu]:
    """Return placeholder GPUs for workers that use none; their numbers distinguish the workers' names."""
    entries = ["0"] if gpu is None else parse_selection(gpu)
    for entry in entries:
        if not entry.isdecimal():
            raise ConfigError(
                f"--gpu {gpu}: expected numbers such as 0,1 for workers that use no GPU, got {entry!r}"
            )
        if entries.count(entry) > 1:
            raise ConfigError(f"--gpu {gpu}: {entry} is listed twice")
    return [Gpu(number=int(entry), index=int(entry), name="") for entry in entries]


def _make_plan(config: WorkerConfig, gpus: Sequence[Gpu], *, supervised: bool = False) -> Plan:
    return Plan(specs=tuple(_spec(config, gpu, supervised) for gpu in gpus), supervised=supervised)


def _spec(config: WorkerConfig, gpu: Gpu, supervised: bool) -> WorkerSpec:
    name, port = config.name, config.http_port
    if name is None and (supervised or gpu.instance is not None):
        name = f"{socket.gethostname()}-gpu{gpu.label}"
    elif name is not None and supervised:
        name = f"{name}-{gpu.label}"
    if port and supervised:
        port += gpu.number
        if port > 65535:
            raise ConfigError(f"--http-port {config.http_port}: the port of GPU {gpu.label} would be {port}")
    own = dataclasses.replace(
        config,
        name=name,
        http_port=port,
        gpu=gpu.index,
        gpu_uuid=gpu.uuid,
        gpu_name=gpu.name or None,
    )
    if own.gpu_name is None:
        return WorkerSpec(config=own, gpu=gpu.label)
    # The process sees only its own GPU, as device 0. An index counts in the order of the PCI bus.
    environment = {CUDA_VISIBLE_DEVICES: gpu.cuda_id, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return WorkerSpec(config=own, gpu="0", environment=environment)


def _warnings(detected: Sequence[Gpu], visible: VisibleGpus, environment: Mapping[str, str]) -> tuple[str, ...]:
    text = environment.get(CUDA_VISIBLE_DEVICES)
    warnings = []
    if visible.problem:
        warnings.append(f"{CUDA_VISIBLE_DEVICES}={text}: {visible.problem}; GPUs found: {format_gpus(detected)}")
    mixed = len({gpu.name for gpu in detected}) > 1
    if text and text.strip()[:1].isdigit() and mixed and environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        warnings.append(
            f"{CUDA_VISIBLE_DEVICES}={text}: its numbers are read as nvidia-smi's; set CUDA_DEVICE_ORDER="
            "PCI_BUS_ID to make CUDA use the same numbers"
        )
    return tuple(warnings)
