"""`imagegen generate`: one request, its pictures in files."""

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imagegen_client.commands.options import (
    Connection,
    Endpoints,
    broker_options,
    open_client,
    request_options,
    seed_option,
)
from imagegen_client.job import Job
from imagegen_client.progress import Progress as Sign
from imagegen_client.result import GenerationResult
from imagegen_client.targets import check_target
from imagegen_protocol import ImagegenError, InvalidRequestError
from imagegen_protocol.limits import MAX_GUIDANCE_SCALE, MAX_IMAGES_PER_REQUEST

if TYPE_CHECKING:
    from PIL.Image import Image


class NotWrittenError(ImagegenError):
    """The picture came, and could not be written or converted."""

    code = "not_written"


def _read_loras(
    context: click.Context, option: click.Parameter, given: tuple[str, ...]
) -> list[dict[str, str | float]] | None:
    loras: list[dict[str, str | float]] = []
    for text in given:
        name, colon, scale = text.rpartition(":")
        try:
            loras.append({"name": name, "scale": float(scale)} if colon else {"name": text})
        except ValueError as error:
            raise click.BadParameter(f"{text!r}: {scale!r} is not a number") from error
    return loras or None


@click.command("generate")
@click.argument("prompt")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where to; the suffix says the format, several images get -0, -1, ... before it.  "
    "[default: imagegen-<seed>.png]",
)
@seed_option("Of the first image; the next ones count on.  [default: random]")
@request_options
@click.option(
    "--guidance-scale",
    type=click.FloatRange(0, MAX_GUIDANCE_SCALE),
    help="How closely to follow the prompt.  [default: the model's]",
)
@click.option("--negative-prompt", metavar="TEXT", help="What should not be in the picture.")
@click.option(
    "--lora",
    "loras",
    multiple=True,
    metavar="NAME[:SCALE]",
    callback=_read_loras,
    help="A LoRA that the workers have, and how much of it (1 unless given); may be given several times.",
)
@click.option(
    "--preview",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Keep here, as PNG, a small picture of what there is so far; some models can't make one.",
)
@click.option("--model", metavar="NAME", help="One that the fleet serves.  [default: the broker's]")
@click.option("--num-images", type=click.IntRange(1, MAX_IMAGES_PER_REQUEST), default=1, show_default=True)
@click.option(
    "--priority", type=click.IntRange(-100, 100), default=0, show_default=True, help="The higher the earlier."
)
@broker_options
def command(
    prompt: str,
    out: Path | None,
    preview: Path | None,
    seed: int | None,
    steps: int | None,
    brokers: Endpoints,
    connect_timeout: float,
    key: Path | None,
    broker_key: Path | None,
    timeout: float | None,
    **options: Any,
) -> None:
    """Draw PROMPT and write the picture.

    Prints the files written, a line each, then a line with seed, worker and seconds.

    \b
    Examples:
      imagegen generate "a red circle on a blue background"
      imagegen generate "a red circle" --out circle.webp --seed 7 --steps 20 --width 512 --height 512
      imagegen generate "a red circle" --num-images 4 --broker tcp://a:5555 --broker tcp://b:5555
    """
    # Chosen here already, since it names the file.
    seed = secrets.randbits(63) if seed is None else seed
    target = out or Path(f"imagegen-{seed}.png")
    try:
        check_target(target)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--out'") from error
    follow = sys.stderr.isatty()
    connection: Connection = {
        "brokers": brokers,
        "connect_timeout": connect_timeout,
        "key": key,
        "broker_key": broker_key,
    }
    with open_client(connection) as client:
        try:
            job = client.submit(
                prompt,
                progress=follow,
                preview=preview is not None,
                seed=seed,
                num_inference_steps=steps,
                timeout_seconds=timeout,
                **options,
            )
        except InvalidRequestError as error:
            raise click.UsageError(error.message) from error
        if follow or preview is not None:
            _show_progress(job, preview)
        result = job.result()
    _write(result, target)


def _write(result: GenerationResult, target: Path) -> None:
    try:
        written = result.save(target)
    except (OSError, ValueError) as error:
        raise NotWrittenError(f"{target}: {error}") from error
    for path in written:
        click.echo(path)
    click.echo(f"seed={result.seed} worker={result.worker} seconds={result.total_seconds:.2f}")


def _show_progress(job: Job, preview: Path | None) -> None:
    """Until the answer is there, show the steps, on a terminal, and keep the last preview in its file."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("waiting", total=None)
        for sign in job.progress():
            again = f", attempt {sign.attempt}" if sign.attempt > 1 else ""
            doing = _waiting(sign) if sign.state == "queued" else "drawing"
            bar.update(task, description=f"{doing}{again}", completed=sign.step, total=sign.steps or None)
            if preview is not None and (picture := sign.preview_image) is not None:
                _keep(picture, preview)


def _waiting(sign: Sign) -> str:
    place = f", place {sign.place}" if sign.place else ", next"
    return f"waiting{place}" + ("" if sign.seconds_to_start is None else f", about {sign.seconds_to_start:.0f} s")


def _keep(picture: "Image", path: Path) -> None:
    """Write a picture so that whoever looks sees the old one or the new one, never half of it."""
    beside = path.with_name(f".{path.name}.part")
    try:
        picture.save(beside, format="PNG")
        beside.replace(path)
    except OSError as error:
        raise NotWrittenError(f"{path}: {error}") from error
