"""From `--gpu` and the GPUs there are to workers: how many, on what, under which name and port."""

import dataclasses
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from imagegen_common.addresses import ConfigError
from imagegen_worker.config import WorkerConfig
from imagegen_worker.devices.gpu import Gpu, listing
from imagegen_worker.devices.visible import GpuMissingError, Visible, chosen, entries, visible
from imagegen_worker.supervisor.shell import Child

CUDA_VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
SUPERVISED = "IMAGEGEN_SUPERVISED"
"""Set in the environment of a supervised worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """One worker to be: its settings, what `--gpu` its own process is given, and its environment."""

    config: WorkerConfig
    gpu: str
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The workers of this host. `supervised`: each in a process of its own, even if there is just one."""

    specs: tuple[WorkerSpec, ...]
    supervised: bool
    warnings: tuple[str, ...] = ()


def plan(
    config: WorkerConfig, gpu: str | None, environment: Mapping[str, str], detect: Callable[[], Sequence[Gpu]]
) -> Plan:
    """Return who works on what; GPUs are looked for only where the workers use them.

    Raises `GpuMissingError` for a GPU that is not there, and `ConfigError` for what can't be meant.
    """
    if config.backend == "simulated" or config.device == "cpu":
        return _seated(config, _numbered(gpu), supervised=gpu is not None and "," in gpu)
    every = detect()
    seen = visible(every, environment.get(CUDA_VISIBLE_DEVICES))
    warnings = _warnings(every, seen, environment)
    if not seen.gpus and gpu is None and config.device == "auto":
        alone = dataclasses.replace(config, device="cpu")
        there = "there is no GPU: the model runs on the CPU"
        return dataclasses.replace(_seated(alone, _numbered(None)), warnings=(*warnings, there))
    if not seen.gpus:
        hidden = f" ({CUDA_VISIBLE_DEVICES} hides {listing(every)})" if every else ""
        asked = "--device cuda" if gpu is None else f"--gpu {gpu}"
        raise GpuMissingError(f"{asked}: there is no GPU{hidden}; --device cpu does without")
    gpus = chosen(seen.gpus, gpu)
    made = _seated(dataclasses.replace(config, device="cuda"), gpus, supervised=gpu is None or len(gpus) > 1)
    return dataclasses.replace(made, warnings=warnings)


def children(plan: Plan, arguments: Sequence[str]) -> list[Child]:
    """Return the processes of a plan: the same command line, with what differs said last, which counts."""
    return [
        Child(
            command=[sys.executable, "-P", "-m", "imagegen_worker", *arguments, *_own_options(spec)],
            environment={**spec.environment, SUPERVISED: "1"},
            about=about(spec.config),
        )
        for spec in plan.specs
    ]


def about(config: WorkerConfig) -> dict[str, object]:
    """Return what log lines tell of a worker's GPU."""
    told = {"worker": config.worker_name, "gpu": config.gpu}
    known = {"gpu_uuid": config.gpu_uuid, "gpu_name": config.gpu_name}
    return told | {key: value for key, value in known.items() if value is not None}


def _own_options(spec: WorkerSpec) -> list[str]:
    options = ["--gpu", spec.gpu, "--name", spec.config.worker_name]
    if spec.config.http_port is not None:
        options += ["--http-port", str(spec.config.http_port)]
    return options


def _numbered(gpu: str | None) -> list[Gpu]:
    """Return what stands for GPUs where none is used: numbers, for the names."""
    words = ["0"] if gpu is None else entries(gpu)
    for word in words:
        if not word.isdecimal():
            raise ConfigError(f"--gpu {gpu}: workers that use no GPU take numbers only, as 0,1, got {word!r}")
        if words.count(word) > 1:
            raise ConfigError(f"--gpu {gpu}: {word} is named twice")
    return [Gpu(number=int(word), index=int(word), name="") for word in words]


def _seated(config: WorkerConfig, gpus: Sequence[Gpu], *, supervised: bool = False) -> Plan:
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
    # Its card alone, as device 0; in the order of the bus, should it go by number.
    alone = {CUDA_VISIBLE_DEVICES: gpu.cuda_id, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return WorkerSpec(config=own, gpu="0", environment=alone)


def _warnings(every: Sequence[Gpu], seen: Visible, environment: Mapping[str, str]) -> tuple[str, ...]:
    text = environment.get(CUDA_VISIBLE_DEVICES)
    warnings = []
    if seen.trouble:
        warnings.append(f"{CUDA_VISIBLE_DEVICES}={text}: {seen.trouble}; there are: {listing(every)}")
    unlike = len({gpu.name for gpu in every}) > 1
    if text and text.strip()[:1].isdigit() and unlike and environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        warnings.append(
            f"{CUDA_VISIBLE_DEVICES}={text}: numbers are those of nvidia-smi; set CUDA_DEVICE_ORDER=PCI_BUS_ID "
            "for CUDA to count alike"
        )
    return tuple(warnings)
