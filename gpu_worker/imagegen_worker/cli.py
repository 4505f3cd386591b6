"""The command `imagegen-worker`."""

import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any, Literal

import click

from imagegen_common.addresses import ConfigError
from imagegen_common.logs import FORMATS, LEVELS, flush, log, log_all, set_up
from imagegen_common.settings import SettingsCommand, end_check, settings_options, usage_error
from imagegen_worker.config import WorkerConfig, parse_bytes
from imagegen_worker.devices.detect import detect
from imagegen_worker.devices.mkl import set_reproducible_mode
from imagegen_worker.devices.visible import GpuMissingError, entries, visible
from imagegen_worker.supervisor.plan import CUDA_VISIBLE_DEVICES, SUPERVISED, Plan, children, plan
from imagegen_worker.supervisor.shell import Supervisor

_log = logging.getLogger(__name__)

_FILE = click.Path(path_type=Path)
_YES = ("true", "1", "yes", "on")
_NO = ("false", "0", "no", "off")


def _split(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    """Endpoints may also stand in one text, with commas between them."""
    return tuple(endpoint for text in given for endpoint in re.split(r",(?=tcp://|ipc://)", text))


def _list_gpus(context: click.Context, parameter: click.Parameter, asked: bool) -> None:
    """Print the GPUs that may be used, if that is what the command was called for."""
    if not asked:
        return
    every, said = detect(), os.environ.get(CUDA_VISIBLE_DEVICES)
    seen = visible(every, said)
    if not every:
        click.echo("there is no GPU", err=True)
    elif len(seen.gpus) < len(every):
        click.echo(
            f"{CUDA_VISIBLE_DEVICES}={said} hides {len(every) - len(seen.gpus)} of {len(every)} GPUs", err=True
        )
    for number, gpu in enumerate(seen.gpus):
        click.echo(json.dumps({"number": number, "uuid": gpu.uuid, "name": gpu.name, "label": gpu.label}))
    context.exit()


class _BatchingOption(click.Option):
    """`--batching`, which ENABLE_BATCHING switches too."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """Return what the environment says; ENABLE_BATCHING=true leaves it to the file, unless that says 'off'."""
        given = os.environ.get("ENABLE_BATCHING", "")
        enabled = given.lower()
        if os.environ.get("IMAGEGEN_WORKER_BATCHING") or not enabled:
            return super().resolve_envvar_value(ctx)
        if enabled not in _YES + _NO:
            words = f"ENABLE_BATCHING must be one of {', '.join(_YES + _NO)}, got {given!r}"
            raise click.BadParameter(words, ctx, self)
        if enabled in _NO:
            return "off"
        return "auto" if ctx.lookup_default("batching") == "off" else None


class _Commas(click.types.StringParamType):
    """A text; in the environment several, with commas between them."""

    envvar_list_splitter = ","


class _Bytes(click.types.StringParamType):
    """A number of bytes, with or without a suffix."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number; fails as click wants it."""
        if isinstance(value, int):
            return value
        try:
            return parse_bytes(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command(
    cls=SettingsCommand, context_settings={"show_default": True, "auto_envvar_prefix": "IMAGEGEN_WORKER"}
)
@settings_options
@click.option(
    "--broker",
    multiple=True,
    default=("tcp://127.0.0.1:5556",),
    envvar="IMAGEGEN_BROKER",
    callback=_split,
    help="Endpoint of a broker's backend; may be given several times, all are dialled.",
)
@click.option(
    "--gpu",
    envvar="GPU_IDS",
    metavar="GPU[,GPU...]",
    help="Numbers or UUIDs, among those that CUDA_VISIBLE_DEVICES leaves. Several get a process each, which is "
    "started again if it dies.  [default: every GPU]",
)
@click.option(
    "--list-gpus",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_gpus,
    help="Print what --gpu can name, one JSON object a line, and end.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where the model runs.")
@click.option(
    "--model",
    metavar="[NAME=]SOURCE",
    type=_Commas(),
    multiple=True,
    help="A folder of a diffusers pipeline, a .safetensors file, or an id on the hub (owner/name, or"
    " owner/name@revision); NAME is what clients ask for. May be given several times: the first is the default,"
    " the others are loaded when they are asked for.  [default: builtin:shapes]",
)
@click.option(
    "--model-memory",
    type=_Bytes(),
    metavar="BYTES",
    help="What the weights of several models may take, as 20GiB; the least recently used one makes room."
    "  [default: 70 % of the card's memory; on a CPU half of the machine's]",
)
@click.option(
    "--model-patience",
    type=float,
    default=10.0,
    help="Seconds that a model waits for the place of one that is used; then that one's new images wait.",
)
@click.option("--preload", is_flag=True, help="Load all models that fit at the start, not only the first.")
@click.option(
    "--model-config",
    metavar="SOURCE",
    help="Folder or hub id with the configuration of a single file's pipeline, and with what the file lacks."
    "  [default: what the weights look like, from the hub or its cache]",
)
@click.option(
    "--model-variant",
    metavar="NAME",
    help="Of the weights, as in model.fp16.safetensors.  [default: the plain ones, else those that are there]",
)
@click.option(
    "--backend",
    type=click.Choice(["diffusers", "simulated"]),
    default="diffusers",
    help="What makes the images; 'simulated' needs no GPU and no model.",
)
@click.option(
    "--batching",
    cls=_BatchingOption,
    type=click.Choice(["auto", "continuous", "static", "off"]),
    default="auto",
    envvar=["IMAGEGEN_WORKER_BATCHING", "ENABLE_BATCHING"],
    help="'continuous' lets requests join and leave at every step, whatever they ask for; 'static' gathers alike "
    "ones for one pipeline call; 'auto' is continuous, and static for the simulated backend. "
    "ENABLE_BATCHING=false means 'off'.",
)
@click.option(
    "--max-batch-size", type=int, default=8, envvar="MAX_BATCH_SIZE", help="Images in one pipeline call."
)
@click.option(
    "--max-batch-wait-time",
    type=float,
    default=0.05,
    envvar="MAX_BATCH_WAIT_TIME",
    help="Seconds that a request waits for company.",
)
@click.option(
    "--capacity",
    type=int,
    help="Images accepted at a time, running and waiting.  [default: two batches]",
)
@click.option(
    "--name",
    help="The worker's name; no two live ones may share it. With several GPUs: NAME-N.  [default: HOST-gpuN]",
)
@click.option("--http-host", default="127.0.0.1", help="Where --http-port is bound.")
@click.option(
    "--http-port",
    type=int,
    help="Port of /metrics, /healthz and /readyz; 0 is any. With several GPUs: GPU n's is this + n."
    "  [default: none is opened]",
)
@click.option(
    "--drain-timeout",
    type=float,
    default=30.0,
    help="Seconds that a leaving worker waits until its answers have arrived.",
)
@click.option(
    "--step-timeout",
    type=float,
    default=300.0,
    help="Seconds without a step after which the device counts as hung, and the process ends; 0: never.",
)
@click.option("--key", type=_FILE, help="Our own .key_secret file, if the broker demands keys (imagegen keygen).")
@click.option("--broker-key", type=_FILE, help="The broker's .key file, if it demands keys.")
@click.option("--torch-threads", type=int, help="CPU threads of one operation.  [default: torch's own]")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    help="Of the model's weights; 'auto' is bfloat16 on a GPU, float32 on a CPU.",
)
@click.option(
    "--compile/--no-compile",
    default=False,
    help="Compile the denoiser with torch.compile; starts slower, runs faster.",
)
@click.option("--attention-backend", metavar="NAME", help="One of diffusers' attention backends.")
@click.option("--vae-tiling/--no-vae-tiling", default=False, help="Decode in tiles: less memory for large images.")
@click.option(
    "--cpu-offload/--no-cpu-offload", default=False, help="Keep on the GPU only the part of the model that works."
)
@click.option(
    "--deterministic/--no-deterministic",
    default=False,
    help="Pad every forward to a fixed number of rows, so that the other requests of a batch change no bit of an "
    "image; promised for float32 on a CPU, where it also sets MKL's reproducible mode (MKL_CBWR). Costs speed.",
)
@click.option(
    "--lora-folder",
    type=_FILE,
    help="Folder of .safetensors files that requests may name, without the suffix, as their LoRAs.",
)
@click.option("--log-level", type=click.Choice(LEVELS), default="info", help="Lines of this level and above.")
@click.option(
    "--log-format", type=click.Choice(FORMATS), default="text", help="'json' is one JSON object a line, on stderr."
)
@click.option(
    "--otlp-endpoint",
    metavar="URL",
    help="An OpenTelemetry collector (http://HOST:4318) for the spans of traced requests.  [default: none]",
)
@click.option("--simulated-batch-seconds", type=float, default=0.2, help="Cost of a call.")
@click.option("--simulated-image-seconds", type=float, default=0.1, help="Cost of each image in a call.")
@click.option("--simulated-load-seconds", type=float, default=0.0, help="Cost of loading a model, of 1 GiB each.")
@click.option(
    "--simulated-fail",
    multiple=True,
    metavar="KIND:VALUE",
    help="A drill, may be given several times: slow:FACTOR, oom:IMAGES, error-on:WORD, crash-on:WORD,"
    " crash-after:CALLS, hang-on:WORD, hang-after:CALLS.",
)
@click.version_option(package_name="imagegen-fleet")
def main(
    broker: tuple[str, ...],
    gpu: str | None,
    device: Literal["auto", "cpu", "cuda"],
    model: tuple[str, ...],
    model_memory: int | None,
    model_patience: float,
    preload: bool,
    backend: Literal["diffusers", "simulated"],
    batching: Literal["auto", "continuous", "static", "off"],
    max_batch_size: int,
    max_batch_wait_time: float,
    capacity: int | None,
    name: str | None,
    http_host: str,
    http_port: int | None,
    drain_timeout: float,
    step_timeout: float,
    key: Path | None,
    broker_key: Path | None,
    torch_threads: int | None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"],
    compile: bool,
    attention_backend: str | None,
    vae_tiling: bool,
    cpu_offload: bool,
    deterministic: bool,
    lora_folder: Path | None,
    model_config: str | None,
    model_variant: str | None,
    log_level: str,
    log_format: str,
    otlp_endpoint: str | None,
    simulated_batch_seconds: float,
    simulated_image_seconds: float,
    simulated_load_seconds: float,
    simulated_fail: tuple[str, ...],
) -> None:
    """Make images on every GPU of this host, or on those of --gpu, for one or several brokers.

    SIGTERM or Ctrl-C drains: what has not begun is given back, what runs is finished. A second one ends
    everything at once. SIGUSR1 drains, too, however often it comes.

    Each option may also stand in the file of --config (--max-batch-size is max_batch_size there), and in the
    environment (IMAGEGEN_WORKER_MAX_BATCH_SIZE). Options win over the environment, and that over the file.

    \b
    Examples:
      imagegen-worker
      imagegen-worker --device cpu
      imagegen-worker --broker tcp://broker:5556 --gpu 1 --model /models/sdxl --http-port 9102
      imagegen-worker --config configs/worker.toml --check-config
      imagegen-worker --backend simulated --simulated-fail oom:5

    \b
    Exit codes:
      0   drained, or the settings are right (--check-config)
      1   everything that is not below; the last line of the log says what
      2   a setting is wrong
      69  the GPU is not there, of a worker whose supervisor waits for it
      70  the device hangs
      78  the model can't be loaded, or a setting can't work on this machine

    With several GPUs, a worker that ends with 0, 2 or 78 is not started again. When all have ended so, the worst
    of their statuses is that of the command.
    """
    context = click.get_current_context()
    try:
        config = WorkerConfig(
            brokers=broker,
            device=device,
            models=model,
            model_memory=model_memory,
            model_patience=model_patience,
            preload=preload,
            backend=backend,
            batching=None if batching == "auto" else batching,
            max_batch_size=max_batch_size,
            max_batch_wait=max_batch_wait_time,
            capacity=capacity,
            name=name,
            http_host=http_host,
            http_port=http_port,
            drain_timeout=drain_timeout,
            step_timeout=step_timeout,
            key=key,
            broker_key=broker_key,
            torch_threads=torch_threads,
            dtype=dtype,
            compile=compile,
            attention_backend=attention_backend,
            vae_tiling=vae_tiling,
            cpu_offload=cpu_offload,
            deterministic=deterministic,
            lora_folder=lora_folder,
            model_config=model_config,
            model_variant=model_variant,
            log_level=log_level,
            otlp_endpoint=otlp_endpoint,
            simulated_batch_seconds=simulated_batch_seconds,
            simulated_image_seconds=simulated_image_seconds,
            simulated_load_seconds=simulated_load_seconds,
            simulated_fail=simulated_fail,
        )
        _check_faults(config)
        _check_keys(config)
        if gpu is not None:
            entries(gpu)
    except ConfigError as error:
        raise usage_error(context, error) from error
    end_check(context)
    set_up(log_level, log_format, own="imagegen_worker")
    context.call_on_close(flush)
    try:
        planned = plan(config, gpu, os.environ, detect)
    except ConfigError as error:
        gone = isinstance(error, GpuMissingError) and SUPERVISED in os.environ
        usage = usage_error(context, error)
        raise _GpuGoneError(usage.message, context) if gone else usage from error
    if planned.supervised:
        _warn(planned)
        sys.exit(Supervisor(children(planned, sys.argv[1:])).run())
    (spec,) = planned.specs
    about = {"worker": spec.config.worker_name, "gpu": spec.config.gpu}
    set_up(log_level, log_format, own="imagegen_worker", **about)
    _warn(planned)
    os.environ.update(spec.environment)  # before torch is imported
    sys.exit(_serve(spec.config))


class _GpuGoneError(click.UsageError):
    """A supervised worker's GPU is not there any more; it may come back (EX_UNAVAILABLE)."""

    exit_code = 69


def _warn(planned: Plan) -> None:
    for warning in planned.warnings:
        log(_log, logging.WARNING, warning)


def _serve(config: WorkerConfig) -> int:
    # As it is imported it warns that torchvision is not there, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if config.deterministic and config.device == "cpu":
        log_all(_log, [set_reproducible_mode(os.environ)])
    from imagegen_worker.backends import StartError
    from imagegen_worker.daemon import Daemon

    try:
        return Daemon(config).run()
    except StartError as error:
        log(_log, logging.CRITICAL, str(error))
        return error.status


def _check_faults(config: WorkerConfig) -> None:
    if config.simulated_fail:
        from imagegen_worker.backends.simulated import parse_faults

        try:
            parse_faults(config.simulated_fail)
        except ValueError as error:
            raise ConfigError(f"--simulated-fail: {error}") from error


def _check_keys(config: WorkerConfig) -> None:
    if config.key is not None:
        from imagegen_protocol.keys import KeyFileError, read_dial_keys

        try:
            read_dial_keys(config.key, config.broker_key)
        except KeyFileError as error:
            raise ConfigError(str(error)) from error
