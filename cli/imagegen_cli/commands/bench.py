"""`imagegen bench`: run a load test and print throughput and latency."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Unpack

import click

from imagegen_cli.bench import Report, run_burst
from imagegen_cli.commands.options import Connection, broker_options, complete_model, open_client
from imagegen_cli.commands.parameter_options import parameter_options
from imagegen_cli.terminal import echo
from imagegen_client.requests import RequestOptions
from imagegen_common.command_line import IntegerRange
from imagegen_protocol import InvalidRequestError


@click.command("bench")
@click.option("--burst", type=IntegerRange(1, 100_000), default=50, show_default=True, help="Number of requests.")
@click.option("--prompt", default="a red circle on a blue background", show_default=True, help="Their prompt.")
@parameter_options(
    "model",
    "seed",
    "num_inference_steps",
    "width",
    "height",
    "timeout_seconds",
    model={"shell_complete": complete_model},
    seed={"help": "Seed of the first request; each further request has the next one.  [default: random]"},
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@broker_options
def command(
    burst: int,
    prompt: str,
    model: str | None,
    seed: int | None,
    num_inference_steps: int | None,
    width: int | None,
    height: int | None,
    timeout_seconds: float | None,
    as_json: bool,
    **connection: Unpack[Connection],
) -> None:
    """Run a load test and print throughput and latency.

    Submits all requests at once. Latency percentiles (nearest rank) cover successful requests, from
    submission to answer. total_batches and avg_batch_size cover this burst only; with continuous batching
    the size is that of the largest batch in which each request ran. The exit status is 1 if a request
    failed.

    \b
    Examples:
      imagegen bench --burst 50
      imagegen bench --burst 50 --model simulated
      imagegen bench --burst 200 --steps 20 --width 512 --height 512 --json
    """
    options: RequestOptions = {
        "model": model,
        "seed": seed,
        "num_inference_steps": num_inference_steps,
        "width": width,
        "height": height,
        "timeout_seconds": timeout_seconds,
    }
    with open_client(connection) as client, _progress_bar(burst) as count:
        try:
            timeout = connection["connect_timeout"]
            report = run_burst(client, prompt, burst, options, stats_timeout=timeout, on_answer=count)
        except InvalidRequestError as error:
            raise click.UsageError(error.message) from error
    numbers = report.as_json()
    echo(json.dumps(numbers, indent=2) if as_json else describe(report, numbers))
    if report.errors:
        click.get_current_context().exit(1)


def describe(report: Report, numbers: dict[str, Any]) -> str:
    """Return the report as text."""
    failures = ", ".join(f"{code} {number}" for code, number in report.failures.items())
    latency = "  ".join(
        f"{name} {'-' if value is None else f'{value:.3f} s'}"
        for name, value in numbers["latency_seconds"].items()
    )
    lines = {
        "total duration": f"{numbers['total_duration_seconds']:.3f} s",
        "successful": f"{numbers['successful']}/{numbers['requests']}",
        "failed": f"{numbers['failed']}" + (f" ({failures})" if failures else ""),
        "throughput": f"{numbers['throughput_images_per_second']:.3f} images/s",
        "latency": latency,
        "num_gpus": numbers["num_gpus"],
        "total_batches": numbers["total_batches"],
        "avg_batch_size": f"{numbers['avg_batch_size']:.2f}",
    }
    return "\n".join(f"{name + ':':<16}{value}" for name, value in lines.items())


@contextmanager
def _progress_bar(total: int) -> Iterator[Callable[[], object]]:
    """Show a progress bar if stderr is a terminal; yield a function to call for each answer."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from imagegen_cli.console import EscapingConsole

    columns = (TextColumn("waiting for answers"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=EscapingConsole(stderr=True), transient=True) as bar:
        task = bar.add_task("answers", total=total)
        yield lambda: bar.advance(task)
