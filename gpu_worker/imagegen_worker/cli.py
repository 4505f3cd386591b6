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
from imagegen_worker.devices.detect import detect_gpus
from imagegen_worker.devices.mkl import set_reproducible_mode
from imagegen_worker.devices.selection import GpuMissingError, parse_selection, visible_gpus
from imagegen_worker.supervisor.plan import CUDA_VISIBLE_DEVICES, SUPERVISED, Plan, plan, worker_commands
from imagegen_worker.supervisor.shell import Supervisor

_log = logging.getLogger(__name__)

_FILE = click.Path(path_type=Path)
_YES = ("true", "1", "yes", "on")
_NO = ("false", "0", "no", "off")


def _split_endpoints(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """Split values that contain several endpoints, separated by commas."""
    return tuple(endpoint for value in values for endpoint in re.split(r",(?=tcp://|ipc://)", value))


def _list_gpus(context: click.Context, parameter: click.Parameter, requested: bool) -> None:
    """Print the visible GPUs and exit, if requested."""
    if not requested:
        return
    detected, variable = detect_gpus(), os.environ.get(CUDA_VISIBLE_DEVICES)
    visible = visible_gpus(detected, variable).gpus
    if not detected:
        click.echo("no GPU found", err=True)
    elif len(visible) < len(detected):
        hidden = len(detected) - len(visible)
        click.echo(f"{CUDA_VISIBLE_DEVICES}={variable} hides {hidden} of {len(detected)} GPUs", err=True)
    for number, gpu in enumerate(visible):
        click.echo(json.dumps({"number": number, "uuid": gpu.uuid, "name": gpu.name, "label": gpu.label}))
    context.exit()


class _BatchingOption(click.Option):
    """`--batching`, which ENABLE_BATCHING also sets."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """Return the value from the environment; ENABLE_BATCHING=true only overrides 'off' in the file."""
        value = os.environ.get("ENABLE_BATCHING", "")
        enabled = value.lower()
        if os.environ.get("IMAGEGEN_WORKER_BATCHING") or not enabled:
            return super().resolve_envvar_value(ctx)
        if enabled not in _YES + _NO:
            message = f"ENABLE_BATCHING must be one of {', '.join(_YES + _NO)}, got {value!r}"
            raise click.BadParameter(message, ctx, self)
        if enabled in _NO:
            return "off"
        return "auto" if ctx.lookup_default("batching") == "off" else None


class _CommaList(click.types.StringParamType):
    """A text; the environment may contain several, separated by commas."""

    envvar_list_splitter = ","


class _Bytes(click.types.StringParamType):
    """A number of bytes with an optional unit."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number of bytes, or fail with click's error."""
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
    callback=_split_endpoints,
    help="Endpoint of a broker's backend; repeatable. The worker connects to all of them.",
)
@click.option(
    "--gpu",
    envvar="GPU_IDS",
    metavar="GPU[,GPU...]",
    help="GPUs by number or UUID, among those that CUDA_VISIBLE_DEVICES leaves visible. Each of several gets a "
    "worker process, which is restarted if it fails.  [default: every GPU]",
)
@click.option(
    "--list-gpus",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_gpus,
    help="Print the GPUs that --gpu can select, one JSON object per line, and exit.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where the model runs.")
@click.option(
    "--model",
    metavar="[NAME=]SOURCE",
    type=_CommaList(),
    multiple=True,
    help="Folder of a diffusers pipeline, .safetensors file, or hub id (owner/name, owner/name@revision), and the"
    " NAME that requests use. Repeatable: the first is the default, the others are loaded on request."
    "  [default: builtin:shapes]",
)
@click.option(
    "--model-memory",
    type=_Bytes(),
    metavar="BYTES",
    help="Memory for the weights of several models, such as 20GiB; the least recently used one is evicted first."
    "  [default: 70 % of the GPU's memory, or half of the host's on a CPU]",
)
@click.option(
    "--model-patience",
    type=float,
    default=10.0,
    help="Seconds after which a requested model replaces one that is still in use.",
)
@click.option("--preload", is_flag=True, help="Load all models that fit at startup, not only the first.")
@click.option(
    "--model-config",
    metavar="SOURCE",
    help="Folder or hub id with the pipeline configuration of a single file, and with the parts that it lacks."
    "  [default: inferred from the weights, from the hub or its cache]",
)
@click.option(
    "--model-variant",
    metavar="NAME",
    help="Variant of the weights, as in model.fp16.safetensors.  [default: none, else the one that exists]",
)
@click.option(
    "--backend",
    type=click.Choice(["diffusers", "simulated"]),
    default="diffusers",
    help="Model runtime; 'simulated' needs no GPU and no model.",
)
@click.option(
    "--batching",
    cls=_BatchingOption,
    type=click.Choice(["auto", "continuous", "static", "off"]),
    default="auto",
    envvar=["IMAGEGEN_WORKER_BATCHING", "ENABLE_BATCHING"],
    help="'continuous': requests with any parameters join and leave at every step; 'static': requests with "
    "equal parameters share one pipeline call; 'off': one image at a time; 'auto': continuous, or static for the "
    "simulated backend. ENABLE_BATCHING=false means 'off'.",
)
@click.option(
    "--max-batch-size", type=int, default=8, envvar="MAX_BATCH_SIZE", help="Maximum number of images in a batch."
)
@click.option(
    "--max-batch-wait-time",
    type=float,
    default=0.05,
    envvar="MAX_BATCH_WAIT_TIME",
    help="Seconds that a request waits for others in static batching.",
)
@click.option(
    "--capacity",
    type=int,
    help="Images accepted at a time, running and waiting.  [default: two batches]",
)
@click.option(
    "--name",
    help="Unique name of the worker. With several GPUs: NAME-N.  [default: HOST-gpuN]",
)
@click.option("--http-host", default="127.0.0.1", help="Address that --http-port binds.")
@click.option(
    "--http-port",
    type=int,
    help="Port of /metrics, /healthz and /readyz; 0 selects a free one. With several GPUs, GPU n uses this + n."
    "  [default: no HTTP server]",
)
@click.option(
    "--drain-timeout",
    type=float,
    default=30.0,
    help="Seconds that a draining worker waits for the acknowledgement of answers after they were last fetched.",
)
@click.option(
    "--step-timeout",
    type=float,
    default=300.0,
    help="Seconds without a denoising step after which the device counts as hung and the process exits; 0: never.",
)
@click.option(
    "--key", type=_FILE, help="The worker's .key_secret file, if the broker requires keys (see imagegen keygen)."
)
@click.option("--broker-key", type=_FILE, help="The broker's .key file, if it requires keys.")
@click.option("--torch-threads", type=int, help="CPU threads of one operation.  [default: torch's choice]")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    help="Data type of the weights; 'auto': bfloat16 on a GPU, float32 on a CPU.",
)
@click.option(
    "--compile/--no-compile",
    default=False,
    help="Compile the denoiser with torch.compile: slower start, faster steps.",
)
@click.option("--attention-backend", metavar="NAME", help="Name of an attention backend of diffusers.")
@click.option(
    "--vae-tiling/--no-vae-tiling",
    default=False,
    help="Decode in tiles, which needs less memory for large images.",
)
@click.option(
    "--cpu-offload/--no-cpu-offload", default=False, help="Keep only the active part of the model on the GPU."
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
    help="Folder of .safetensors files that requests can use as LoRAs, by name without the suffix.",
)
@click.option("--log-level", type=click.Choice(LEVELS), default="info", help="Minimum level of log lines.")
@click.option(
    "--log-format",
    type=click.Choice(FORMATS),
    default="text",
    help="Format of log lines on stderr; 'json': one object per line.",
)
@click.option(
    "--otlp-endpoint",
    metavar="URL",
    help="OpenTelemetry collector (http://HOST:4318) that receives the spans of traced requests.  [default: none]",
)
@click.option("--simulated-batch-seconds", type=float, default=0.2, help="Duration of a call.")
@click.option(
    "--simulated-image-seconds", type=float, default=0.1, help="Additional duration for each image in a call."
)
@click.option("--simulated-forward-seconds", type=float, default=0.0, help="Additional duration of each step.")
@click.option(
    "--simulated-megapixel-seconds",
    type=float,
    default=0.0,
    help="Additional duration of each step for each megapixel of each image.",
)
@click.option("--simulated-load-seconds", type=float, default=0.0, help="Duration of loading a model of 1 GiB.")
@click.option(
    "--simulated-fail",
    multiple=True,
    metavar="KIND:VALUE",
    help="Injected fault, repeatable: slow:FACTOR, oom:IMAGES, error-on:WORD, crash-on:WORD,"
    " crash-after:CALLS, hang-on:WORD, hang-after:CALLS.",
)
@click.version_option(package_name="imagegen-fleet")
def main(gpu: str | None, log_level: str, log_format: str, **options: Any) -> None:
    """Generate images on every GPU of this host, or on those of --gpu, for one or more brokers.

    SIGTERM and Ctrl-C drain the worker: queued requests are returned to the broker, running ones are finished. A
    second signal ends the worker immediately. SIGUSR1 drains too, and can be repeated.

    Each option can also be set in the file of --config (--max-batch-size as max_batch_size) and in the
    environment (IMAGEGEN_WORKER_MAX_BATCH_SIZE). Options override the environment, which overrides the file.

    \b
    Examples:
      imagegen-worker
      imagegen-worker --device cpu
      imagegen-worker --broker tcp://broker:5556 --gpu 1 --model /models/sdxl --http-port 9102
      imagegen-worker --config configs/worker.toml --check-config
      imagegen-worker --backend simulated --simulated-fail oom:5

    \b
    Exit codes:
      0   drained, or the settings are valid (--check-config)
      1   any other failure; see the last line of the log
      2   invalid setting
      69  the GPU of a supervised worker is missing
      70  the device hangs
      78  the model cannot be loaded, or a setting does not work on this machine

    With several GPUs, workers that exit with 0, 2 or 78 are not restarted. Once all have exited so, the command
    exits with the highest of their codes.
    """
    context = click.get_current_context()
    try:
        config = _make_config(log_level=log_level, **options)
        _check_faults(config)
        _check_keys(config)
        if gpu is not None:
            parse_selection(gpu)
    except ConfigError as error:
        raise usage_error(context, error) from error
    end_check(context)
    set_up(log_level, log_format, own="imagegen_worker")
    context.call_on_close(flush)
    try:
        planned = plan(config, gpu, os.environ, detect_gpus)
    except ConfigError as error:
        missing = isinstance(error, GpuMissingError) and SUPERVISED in os.environ
        usage = usage_error(context, error)
        raise _GpuGoneError(usage.message, context) if missing else usage from error
    if planned.supervised:
        _log_warnings(planned)
        sys.exit(Supervisor(worker_commands(planned, sys.argv[1:])).run())
    (spec,) = planned.specs
    set_up(log_level, log_format, own="imagegen_worker", worker=spec.config.worker_name, gpu=spec.config.gpu)
    _log_warnings(planned)
    os.environ.update(spec.environment)  # before torch is imported
    sys.exit(_serve(spec.config))


def _make_config(
    *,
    broker: tuple[str, ...],
    model: tuple[str, ...],
    batching: Literal["auto", "continuous", "static", "off"],
    max_batch_wait_time: float,
    **settings: Any,
) -> WorkerConfig:
    """Return the settings. The remaining options have the names of the fields."""
    return WorkerConfig(
        brokers=broker,
        models=model,
        batching=None if batching == "auto" else batching,
        max_batch_wait=max_batch_wait_time,
        **settings,
    )


class _GpuGoneError(click.UsageError):
    """The GPU of a supervised worker is missing; it may come back (EX_UNAVAILABLE)."""

    exit_code = 69


def _log_warnings(planned: Plan) -> None:
    for warning in planned.warnings:
        log(_log, logging.WARNING, warning)


def _serve(config: WorkerConfig) -> int:
    # Suppress the warning at import that torchvision, which is not needed, is missing.
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
        from imagegen_protocol.keys import KeyFileError, read_curve_keys

        try:
            read_curve_keys(config.key, config.broker_key)
        except KeyFileError as error:
            raise ConfigError(str(error)) from error
