"""`imagegen generate`: prompts in, pictures in files."""

import sys
from pathlib import Path
from typing import Any, cast

import click

from imagegen_cli.commands.errors import InputError
from imagegen_cli.commands.generation import Watcher, draw
from imagegen_cli.commands.options import Endpoints, broker_options, complete_model, open_client
from imagegen_cli.commands.parameter_options import parameter_options
from imagegen_cli.commands.report import NotWrittenError, Reporter
from imagegen_cli.commands.traces import traces_to
from imagegen_cli.output_files import Existing, Targets, check_orders, choose
from imagegen_cli.prompts import Given, Order, number, read_lines
from imagegen_client.progress import Progress
from imagegen_client.requests import RequestOptions
from imagegen_client.sync import DEFAULT_WINDOW
from imagegen_common.files import replacing
from imagegen_protocol import InvalidRequestError
from imagegen_protocol.seeds import random_seed

_MOST_JOBS = 5000
"""What a broker holds of one client, unless told otherwise."""
_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def format_of(name: str | None) -> str | None:
    """Return the output format that the suffix of a file name stands for; None if workers do not have it."""
    return None if name is None else _FORMATS.get(Path(name).suffix.lower())


@click.command("generate")
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@click.option(
    "--prompts",
    "files",
    multiple=True,
    metavar="FILE",
    type=click.Path(allow_dash=True),
    help="More prompts, one a line, '-' is stdin. Blank lines and those that begin with # are skipped; one that "
    'begins with { is a JSON object with "prompt" and options of its own. May be given several times.',
)
@click.option(
    "--out",
    type=click.Path(),
    metavar="PATH",
    help="The file, whose suffix says the format; for several prompts, or with --pattern, the folder.  "
    "[default: here]",
)
@click.option(
    "--pattern",
    metavar="NAME",
    help="What files are called: {index} of the prompt and {image} (both from 0), {seed} of the image, {prompt} "
    "(shortened), {model}, {worker}; {index:03} pads with zeros, a / makes folders.  [default: imagegen-{seed}]",
)
@click.option(
    "--overwrite",
    "existing",
    flag_value=Existing.OVERWRITE,
    type=Existing,
    help="Write over files that are there.",
)
@click.option(
    "--skip-existing",
    "existing",
    flag_value=Existing.SKIP,
    type=Existing,
    help="Draw only what is not there yet, as after an interruption.  [default: refuse]",
)
@click.option(
    "--preview",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="File for a small PNG preview, rewritten as the image emerges; some models have none.",
)
@parameter_options(
    seed={"help": "Seed of the first image; each further image and prompt has the next one.  [default: random]"},
    output_format={
        "help": "File format in which the worker encodes the images.  [default: by the suffix of --out, else png]"
    },
    model={"shell_complete": complete_model},
)
@click.option(
    "--jobs",
    type=click.IntRange(1, _MOST_JOBS),
    default=DEFAULT_WINDOW,
    show_default=True,
    help="Prompts on their way at a time.",
)
@click.option("--quiet", "-q", is_flag=True, help="No bars; print the files' names alone.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each prompt, a line each.")
@click.option(
    "--otlp-endpoint",
    metavar="URL",
    envvar="IMAGEGEN_CLIENT_OTLP_ENDPOINT",
    show_envvar=True,
    help="An OpenTelemetry collector (http://HOST:4318) that gets a trace of each prompt.  [default: none]",
)
@broker_options
def command(
    prompts: tuple[str, ...],
    files: tuple[str, ...],
    out: str | None,
    pattern: str | None,
    existing: Existing | None,
    preview: Path | None,
    seed: int | None,
    jobs: int,
    quiet: bool,
    as_json: bool,
    otlp_endpoint: str | None,
    brokers: Endpoints,
    connect_timeout: float,
    key: Path | None,
    broker_key: Path | None,
    **options: Any,
) -> None:
    """Draw each PROMPT and write the pictures.

    Prints, as the answers come, the files written, a line each, then a line with seed, worker and seconds. A
    prompt that fails gets a line on stderr and stops no other; the exit status is then 1. Files that are there
    are refused before anything is drawn, unless told otherwise. With several prompts a full queue is waited for.

    \b
    Examples:
      imagegen generate "a red circle on a blue background"
      imagegen generate "a red circle" --out circle.webp --seed 7 --steps 20 --width 512 --height 512
      imagegen generate "a red circle" --image sketch.png --format webp --quality 80
      imagegen generate "a red circle" --num-images 4 --broker tcp://a:5555 --broker tcp://b:5555
      imagegen generate --prompts prompts.txt --out pictures --pattern "{index:03}-{prompt}.png" --seed 1
      echo '{"prompt": "a green square", "width": 512}' | imagegen generate --prompts - --json
    """
    options["output_format"] = options["output_format"] or format_of(pattern or out)
    orders = _read(prompts, files, options, seed)
    number_given = len(orders)
    several = number_given > 1
    if several and preview is not None:
        raise click.UsageError("--preview: one prompt has room in one file")
    targets, orders = _aim(orders, out, pattern, existing or Existing.REFUSE, several)
    if (skipped := number_given - len(orders)) and not quiet:
        click.echo(f"skipped {skipped} of {number_given}: their pictures are there", err=True)
    watcher = _watcher(len(orders), shown=not quiet and sys.stderr.isatty())
    report = Reporter(targets, watcher, quiet=quiet, as_json=as_json)
    # Who brings many prompts waits for a full queue; who brings one wants to know.
    with (
        traces_to(otlp_endpoint) as provider,
        open_client(
            {"brokers": brokers, "connect_timeout": connect_timeout, "key": key, "broker_key": broker_key},
            retry_overloaded=several,
            tracer_provider=provider,
        ) as client,
        watcher,
    ):
        outcomes = draw(
            client,
            orders,
            watcher,
            jobs=jobs,
            progress=type(watcher) is not Watcher,
            keep_preview=None if preview is None else lambda sign: _keep(sign, preview),
        )
        for outcome in outcomes:
            report.take(outcome)
    if report.failed:
        click.get_current_context().exit(1)


def _read(
    prompts: tuple[str, ...], files: tuple[str, ...], common: dict[str, Any], seed: int | None
) -> list[Order]:
    """Return the requests. Raises `InputError` for what can't be one."""
    given = [
        Given(prompt, {}, f"prompt {at}" if files or len(prompts) > 1 else "")
        for at, prompt in enumerate(prompts, 1)
    ]
    first_seed = random_seed() if seed is None else seed
    try:
        for name in files:
            lines = list(read_lines(_text_of(name), "stdin" if name == "-" else name))
            if not lines:
                raise InputError("--prompts", f"no prompt in {name}")
            given += lines
        if not given:
            raise click.UsageError("Missing argument 'PROMPT': give a prompt, several, or --prompts FILE")
        return number(given, cast(RequestOptions, common), first_seed)
    except InvalidRequestError as error:
        raise InputError("", error.message) from error


def _text_of(name: str) -> str:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise InputError("--prompts", f"can't read {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError("--prompts", f"{name}:{line}: not UTF-8 text") from error


def _aim(
    orders: list[Order], out: str | None, pattern: str | None, existing: Existing, several: bool
) -> tuple[Targets, list[Order]]:
    """Return where pictures go, and which there are to draw. Raises `InputError`."""
    try:
        targets = choose(out, pattern, existing, several=several)
        return targets, check_orders(targets, orders)
    except ValueError as error:
        raise InputError("--out" if pattern is None else "--pattern", str(error)) from error
    except OSError as error:
        raise InputError("--out", f"{error.filename}: {error.strerror}") from error


def _watcher(total: int, *, shown: bool) -> Watcher:
    if not shown or not total:
        return Watcher()
    from imagegen_cli.commands.progress_display import ProgressDisplay

    return ProgressDisplay(total)


def _keep(sign: Progress, path: Path) -> None:
    """Write a preview over the previous one. Raises `NotWrittenError`."""
    try:
        if (preview := sign.preview_image) is not None:
            with replacing(path) as temporary:
                preview.save(temporary, format="PNG")
    except OSError as error:
        raise NotWrittenError(f"{path}: {error}") from error
