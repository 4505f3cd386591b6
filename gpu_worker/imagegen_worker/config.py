"""The settings of a worker, with defaults and checks. Imports no model library."""

import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imagegen_common.addresses import ConfigError, errors_of
from imagegen_common.tracing import TracingError, check_otlp_endpoint
from imagegen_protocol.endpoints import parse_endpoint
from imagegen_protocol.limits import MAX_IDS_PER_MESSAGE, MAX_MODELS, MAX_NAME_LENGTH
from imagegen_worker.models.sources import BUILTIN, WEIGHTS_SUFFIX, ModelSource, read_source

MAX_CAPACITY = MAX_IDS_PER_MESSAGE
"""A heartbeat lists at most this many queued ids."""
MAX_BATCH_SIZE = MAX_CAPACITY // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a diffusers model is loaded; see the options of the same names."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: bool = False
    attention_backend: str | None = None
    vae_tiling: bool = False
    cpu_offload: bool = False
    deterministic: bool = False
    lora_folder: Path | None = None
    model_config: str | None = None
    """Folder or hub id with the pipeline configuration of a single file; None: inferred from the weights."""
    model_variant: str | None = None
    """Variant of the weights, as in `model.fp16.safetensors`; None: no variant, else the one that exists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """The settings of one worker. Times in seconds. Raises `ConfigError` for invalid or conflicting settings.

    `batching`, `name`, `capacity`, `model_memory` and `torch_threads` may be None: see `effective_batching`,
    `worker_name`, `effective_capacity`, and the diffusers backend. `http_port` None disables HTTP, 0 selects a
    free port. `gpu` is the index of the card on the host, which may differ from torch's.
    """

    brokers: tuple[str, ...] = ("tcp://127.0.0.1:5556",)
    gpu: int = 0
    gpu_uuid: str | None = None
    gpu_name: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    models: tuple[str, ...] = ()
    model_memory: int | None = None
    model_patience: float = 10.0
    preload: bool = False
    backend: Literal["diffusers", "simulated"] = "diffusers"
    batching: Literal["continuous", "static", "off"] | None = None
    max_batch_size: int = 8
    max_batch_wait: float = 0.05
    capacity: int | None = None
    name: str | None = None
    http_host: str = "127.0.0.1"
    http_port: int | None = None
    drain_timeout: float = 30.0
    step_timeout: float = 300.0
    key: Path | None = None
    broker_key: Path | None = None
    torch_threads: int | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: bool = False
    attention_backend: str | None = None
    vae_tiling: bool = False
    cpu_offload: bool = False
    deterministic: bool = False
    lora_folder: Path | None = None
    model_config: str | None = None
    model_variant: str | None = None
    log_level: str = "info"
    otlp_endpoint: str | None = None
    simulated_batch_seconds: float = 0.2
    simulated_image_seconds: float = 0.1
    simulated_forward_seconds: float = 0.0
    simulated_megapixel_seconds: float = 0.0
    simulated_load_seconds: float = 0.0
    simulated_fail: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_brokers(self.brokers)
        self._check_ranges()
        if (self.key is None) != (self.broker_key is None):
            raise ConfigError("--key and --broker-key go together")
        if self.otlp_endpoint is not None:
            try:
                check_otlp_endpoint(self.otlp_endpoint)
            except TracingError as error:
                raise ConfigError(str(error)) from error
        if not self.http_host:
            raise ConfigError("--http-host must not be empty; use 0.0.0.0 for all interfaces")
        _check_name("--name", self.worker_name)
        if self.backend == "diffusers":
            self._check_sources()
            if self.simulated_fail:
                raise ConfigError("--simulated-fail needs --backend simulated")
        elif self.batching == "continuous":
            raise ConfigError("--batching continuous needs --backend diffusers")
        if self.deterministic and self.effective_batching != "continuous":
            raise ConfigError("--deterministic needs --batching continuous")
        if self.lora_folder is not None:
            self._check_loras(self.lora_folder)
        self._check_names()

    def _check_ranges(self) -> None:
        day = 24 * 3600
        for option, value, low, high in (
            ("--gpu", self.gpu, 0, 1023),
            ("--max-batch-size", self.max_batch_size, 1, MAX_BATCH_SIZE),
            ("--max-batch-wait-time", self.max_batch_wait, 0, 3600),
            ("--drain-timeout", self.drain_timeout, 0, day),
            ("--step-timeout", self.step_timeout, 0, day),
            ("--simulated-batch-seconds", self.simulated_batch_seconds, 0, day),
            ("--simulated-image-seconds", self.simulated_image_seconds, 0, day),
            ("--simulated-forward-seconds", self.simulated_forward_seconds, 0, day),
            ("--simulated-megapixel-seconds", self.simulated_megapixel_seconds, 0, day),
            ("--simulated-load-seconds", self.simulated_load_seconds, 0, day),
            ("--model-patience", self.model_patience, 0, day),
            ("--model-memory", self.model_memory, 1, 2**60),
            ("--capacity", self.capacity, 1, MAX_CAPACITY),
            ("--http-port", self.http_port, 0, 65535),
            ("--torch-threads", self.torch_threads, 1, 1024),
        ):
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{option} must be from {low} to {high}, got {value}")

    def _check_names(self) -> None:
        if len(self._named_sources) > MAX_MODELS:
            raise ConfigError(
                f"--model: a worker serves at most {MAX_MODELS} models, got {len(self._named_sources)}"
            )
        for name, _ in self._named_sources:
            _check_name("--model", name)
        names = [name for name, _ in self._named_sources]
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"--model: two models are named {duplicates[0]!r}; rename one: NAME=SOURCE")

    def _check_sources(self) -> None:
        files = [
            isinstance(source.location, Path) and source.location.is_file()
            for _, source in self._named_sources
            if source
        ]
        if self.model_config is not None:
            if not any(files):
                raise ConfigError(f"--model-config needs a single {WEIGHTS_SUFFIX} file as --model")
            location = _read_source("--model-config", self.model_config).location
            if isinstance(location, Path) and not location.is_dir():
                raise ConfigError(f"--model-config must be a folder or a hub id, got {self.model_config!r}")
        if self.model_variant is not None:
            if not re.fullmatch(r"\w+", self.model_variant, re.ASCII):
                raise ConfigError(f"--model-variant must be a word such as fp16, got {self.model_variant!r}")
            if all(files):
                raise ConfigError("--model-variant needs a model of several files, got single files")

    def _check_loras(self, folder: Path) -> None:
        if self.backend != "diffusers":
            raise ConfigError("--lora-folder needs --backend diffusers")
        if not folder.is_dir():
            raise ConfigError(f"--lora-folder must be an existing folder, got {str(folder)!r}")
        for option, enabled in (("--compile", self.compile), ("--cpu-offload", self.cpu_offload)):
            if enabled:  # both replace the modules that a LoRA would change
                raise ConfigError(f"--lora-folder cannot be combined with {option}")

    @property
    def worker_name(self) -> str:
        """The name in statistics and results; by default the host name and GPU index."""
        return f"{socket.gethostname()}-gpu{self.gpu}" if self.name is None else self.name

    @property
    def effective_batching(self) -> Literal["continuous", "static", "off"]:
        """The selected batching; by default continuous for diffusers and static for the simulated backend."""
        if self.batching is not None:
            return self.batching
        return "continuous" if self.backend == "diffusers" else "static"

    @property
    def load_options(self) -> LoadOptions:
        """The options for loading a diffusers model."""
        return LoadOptions(
            device=self.device,
            threads=self.torch_threads,
            dtype=self.dtype,
            compile=self.compile,
            attention_backend=self.attention_backend,
            vae_tiling=self.vae_tiling,
            cpu_offload=self.cpu_offload,
            deterministic=self.deterministic,
            lora_folder=self.lora_folder,
            model_config=self.model_config,
            model_variant=self.model_variant,
        )

    @property
    def batch_size(self) -> int:
        """Maximum number of images in a batch; 1 if batching is off."""
        return 1 if self.batching == "off" else self.max_batch_size

    @property
    def effective_capacity(self) -> int:
        """Maximum number of images of accepted requests; by default two batches, one running and one waiting."""
        return 2 * self.batch_size if self.capacity is None else self.capacity

    @property
    def model_name(self) -> str:
        """The name of the first model, which is the default."""
        return self._named_sources[0][0]

    @property
    def sources(self) -> dict[str, ModelSource | None]:
        """The sources of the models by name, the default first; None for simulated models."""
        return dict(self._named_sources)

    @property
    def model_source(self) -> ModelSource:
        """The source of the first model, for the diffusers backend."""
        source = self._named_sources[0][1]
        assert source is not None
        return source

    @property
    def _named_sources(self) -> list[tuple[str, ModelSource | None]]:
        if self.backend == "simulated":
            return [(name, None) for name in self.models or ("simulated",)]
        sources = [_read_source("--model", text) for text in self.models or (f"{BUILTIN}shapes",)]
        return [(source.name, source) for source in sources]


def half_of_memory() -> int:
    """Return half of this machine's memory, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def parse_bytes(text: str) -> int:
    """Parse a number of bytes such as 20GiB, 500MB or 1000. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text, re.IGNORECASE | re.ASCII)
    if match is None or (match[3] and not match[2]):
        raise ValueError(f"expected bytes such as 20GiB, 500MB or 1000, got {text!r}")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2].lower() or " "))


def _check_name(option: str, name: str) -> None:
    """Raise `ConfigError` for a name that brokers would reject in READY."""
    # \ud800-\udfff: bytes on the command line that are not UTF-8.
    if not re.fullmatch(rf"[^\x00-\x1f\x7f\ud800-\udfff]{{1,{MAX_NAME_LENGTH}}}", name):
        raise ConfigError(
            f"{option}: expected a name of 1 to {MAX_NAME_LENGTH} UTF-8 characters without control characters,"
            f" got {name!r}"
        )


def _check_brokers(brokers: Sequence[str]) -> None:
    if not brokers:
        raise ConfigError("--broker is required, for example tcp://127.0.0.1:5556")
    for endpoint in brokers:
        with errors_of("--broker"):
            parse_endpoint(endpoint)
    if len(set(brokers)) < len(brokers):
        raise ConfigError(f"--broker: an endpoint is listed twice: {', '.join(brokers)}")


def _read_source(option: str, text: str) -> ModelSource:
    with errors_of(option):
        return read_source(text)
