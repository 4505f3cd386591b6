"""`imagegen generate`: generate images of prompts and write them to files."""

import re
import sys
from pathlib import Path
from typing import Any, cast

import click

from imagegen_cli.commands.errors import InputError
from imagegen_cli.commands.generation import ProgressView, run_requests
from imagegen_cli.commands.options import Connection, Endpoints, broker_options, complete_model, open_client
from imagegen_cli.commands.parameter_options import parameter_options, parameter_type
from imagegen_cli.commands.results import NotWrittenError, ResultWriter
from imagegen_cli.commands.traces import traces_to
from imagegen_cli.output_files import Existing, OutputFiles, resolve_output, select_requests
from imagegen_cli.prompts import PreparedRequest, PromptEntry, prepare, read_lines
from imagegen_cli.terminal import echo
from imagegen_client.progress import Progress
from imagegen_client.requests import RequestOptions
from imagegen_client.sync import DEFAULT_WINDOW
from imagegen_common.command_line import IntegerRange
from imagegen_common.files import replacing
from imagegen_protocol import InvalidRequestError, ProtocolError
from imagegen_protocol.seeds import random_seed

_MAX_JOBS = 5000
"""Default limit of a broker on the requests of one client."""
_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def format_of(name: str | None) -> str | None:
    """Return the output format for the suffix of a file name; None if workers do not support it."""
    return None if name is None else _FORMATS.get(Path(name).suffix.lower())


def _read_size(context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """Read a size such as `512x768`, or `512` for a square. Raises `click.BadParameter`."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:[xX×](\d+))?", text.strip())
    if match is None:
        raise click.BadParameter(f"expected WIDTHxHEIGHT, such as 512x768, got {text!r}")
    side = parameter_type("width")
    width, height = (side.convert(number, option, context) for number in (match[1], match[2] or match[1]))
    return width, height


@click.command("generate")
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@click.option(
    "--prompts",
    "files",
    multiple=True,
    metavar="FILE",
    type=click.Path(allow_dash=True),
    help="Read prompts from a file, one per line; - is stdin. Blank lines and lines starting with # are skipped; "
    'a line starting with { is a JSON object with "prompt" and options of its own. May be given several times.',
)
@click.option(
    "--out",
    "-o",
    type=click.Path(),
    metavar="PATH",
    help="Output file, whose suffix sets the format; with several prompts or --pattern, the output folder.  "
    "[default: the current folder]",
)
@click.option(
    "--pattern",
    metavar="NAME",
    help="File names: {index} of the prompt and {image} of the request (both from 0), {seed}, {prompt} "
    "(shortened), {model}, {worker}; {index:03} pads with zeros, / creates folders.  [default: imagegen-{seed}]",
)
@click.option(
    "--overwrite",
    "existing",
    flag_value=Existing.OVERWRITE,
    type=Existing,
    help="Overwrite existing files.",
)
@click.option(
    "--skip-existing",
    "existing",
    flag_value=Existing.SKIP,
    type=Existing,
    help="Generate only images whose files do not exist, to resume after an interruption.  [default: fail]",
)
@click.option(
    "--preview",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="File for a small PNG preview of the unfinished image; not every model supports previews.",
)
@parameter_options(
    seed={"help": "Seed of the first image; each further image and prompt has the next one.  [default: random]"},
    output_format={
        "help": "File format in which the worker encodes the images.  [default: by the suffix of --out, else png]"
    },
    num_images={"short": ("-n",)},
    model={"shell_complete": complete_model},
)
@click.option(
    "--size",
    callback=_read_size,
    metavar="WIDTHxHEIGHT",
    help="Width and height of the images in pixels, such as 512x768; 512 is 512x512.",
)
@click.option(
    "--jobs",
    type=IntegerRange(1, _MAX_JOBS),
    default=DEFAULT_WINDOW,
    show_default=True,
    help="Maximum number of unfinished requests.",
)
@click.option("--quiet", "-q", is_flag=True, help="Print only the paths of the files; no progress bars.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per prompt and line.")
@click.option("--show", is_flag=True, help="Show the images in the terminal, too.")
@click.option(
    "--otlp-endpoint",
    metavar="URL",
    envvar="IMAGEGEN_CLIENT_OTLP_ENDPOINT",
    show_envvar=True,
    help="OpenTelemetry collector (http://HOST:4318) that receives a trace of each prompt.  [default: none]",
)
@broker_options
def command(
    prompts: tuple[str, ...],
    files: tuple[str, ...],
    out: str | None,
    pattern: str | None,
    existing: Existing | None,
    preview: Path | None,
    size: tuple[int, int] | None,
    seed: int | None,
    jobs: int,
    quiet: bool,
    as_json: bool,
    show: bool,
    otlp_endpoint: str | None,
    brokers: Endpoints,
    connect_timeout: float,
    key: Path | None,
    broker_key: Path | None,
    **options: Any,
) -> None:
    """Generate images of each PROMPT and write them to files.

    Prints the path of each file, then a line with seed, worker and seconds, in the order of completion. A prompt
    that fails prints an error on stderr, the others continue, and the exit status is 1. Existing files are an
    error before anything is generated, unless --overwrite or --skip-existing is given. With several prompts the
    command waits while the broker's queue is full.

    \b
    Examples:
      imagegen generate "a red circle on a blue background"
      imagegen generate "a red circle" --out circle.webp --seed 7 --steps 20 --size 512x512
      imagegen generate "a red circle" --image sketch.png --format webp --quality 80
      imagegen generate "a red circle" --show
      imagegen generate "a red circle" -n 4 --broker tcp://a:5555 --broker tcp://b:5555
      imagegen generate --prompts prompts.txt --out images --pattern "{index:03}-{prompt}.png" --seed 1
      echo '{"prompt": "a green square", "width": 512}' | imagegen generate --prompts - --json
    """
    _check_show(show, as_json)
    _set_size(options, size)
    options["output_format"] = _output_format(options["output_format"], pattern, out)
    given = _read(prompts, files, options, seed)
    several = len(given) > 1
    if several and preview is not None:
        raise click.UsageError(f"--preview: expected one prompt, got {len(given)}")
    output, requests = _select(given, out, pattern, existing or Existing.REFUSE, several)
    _report_skipped(0 if quiet else len(given) - len(requests), len(given))
    view = _progress_view(len(requests), shown=not quiet and sys.stderr.isatty())
    writer = ResultWriter(output, view, quiet=quiet, as_json=as_json, show=show)
    broker: Connection = {
        "brokers": brokers, "connect_timeout": connect_timeout, "key": key, "broker_key": broker_key
    }  # fmt: skip
    # A batch of prompts waits while the queue is full; a single prompt reports it.
    with (
        traces_to(otlp_endpoint) as provider,
        open_client(broker, retry_overloaded=several, tracer_provider=provider) as client,
        view,
    ):
        save = None if preview is None else lambda event: _save_preview(event, preview)
        follow = type(view) is not ProgressView
        for outcome in run_requests(client, requests, view, jobs=jobs, progress=follow, on_preview=save):
            writer.write(outcome)
    if writer.failed:
        click.get_current_context().exit(1)


def _check_show(show: bool, as_json: bool) -> None:
    if show and as_json:
        raise click.UsageError("--show and --json exclude each other")
    if show and not sys.stdout.isatty():
        raise click.UsageError("--show needs a terminal, and stdout is none; leave it out")


def _set_size(options: dict[str, Any], size: tuple[int, int] | None) -> None:
    if size is None:
        return
    given = [f"--{name}" for name in ("width", "height") if options[name] is not None]
    if given:
        raise click.UsageError(f"--size sets the width and the height; leave out {' and '.join(given)}")
    options["width"], options["height"] = size


def _output_format(given: str | None, pattern: str | None, out: str | None) -> str | None:
    """Return the format of the images: `--format`, or what the suffix of the files stands for."""
    name, option = (pattern, "--pattern") if pattern is not None else (out, "--out")
    by_suffix = format_of(name)
    if given is not None and by_suffix not in (None, given):
        raise InputError("--format", f"{given} contradicts {option} {name}; leave it out, or change the suffix")
    return given or by_suffix


def _report_skipped(skipped: int, given: int) -> None:
    if skipped:
        echo(f"skipped {skipped} of {given} prompts: their files exist", err=True)


def _read(
    prompts: tuple[str, ...], files: tuple[str, ...], common: dict[str, Any], seed: int | None
) -> list[PreparedRequest]:
    """Return the requests of all prompts. Raises `InputError` for invalid ones."""
    entries = [
        PromptEntry(prompt, {}, f"prompt {at}" if files or len(prompts) > 1 else "")
        for at, prompt in enumerate(prompts, 1)
    ]
    first_seed = random_seed() if seed is None else seed
    try:
        for name in files:
            lines = list(read_lines(_read_text(name), "stdin" if name == "-" else name))
            if not lines:
                raise InputError("--prompts", f"{name}: expected at least one prompt, got none")
            entries += lines
        if not entries:
            raise click.UsageError("Missing argument 'PROMPT': give at least one prompt or --prompts FILE")
        return prepare(entries, cast(RequestOptions, common), first_seed)
    except InvalidRequestError as error:
        raise InputError("", error.message) from error


def _read_text(name: str) -> str:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise InputError("--prompts", f"cannot read {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError("--prompts", f"{name}:{line}: expected UTF-8 text") from error


def _select(
    requests: list[PreparedRequest], out: str | None, pattern: str | None, existing: Existing, several: bool
) -> tuple[OutputFiles, list[PreparedRequest]]:
    """Return the output files and the requests to run. Raises `InputError`."""
    try:
        output = resolve_output(out, pattern, existing, several=several)
        return output, select_requests(output, requests)
    except ValueError as error:
        raise InputError("--out" if pattern is None else "--pattern", str(error)) from error
    except OSError as error:
        raise InputError("--out", f"{error.filename}: {error.strerror}") from error


def _progress_view(total: int, *, shown: bool) -> ProgressView:
    if not shown or not total:
        return ProgressView()
    from imagegen_cli.commands.progress_display import ProgressDisplay

    return ProgressDisplay(total)


def _save_preview(event: Progress, path: Path) -> None:
    """Replace the preview file atomically. Raises `NotWrittenError`."""
    try:
        if (preview := event.preview_image) is not None:
            with replacing(path) as temporary:
                preview.save(temporary, format="PNG")
    except (OSError, ProtocolError) as error:
        raise NotWrittenError(f"{path}: {error}") from error
