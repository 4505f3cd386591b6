"""Tables of statistics and models for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from imagegen_cli.dashboard.columns import STATE_STYLES, models_text
from imagegen_cli.durations import format_duration
from imagegen_protocol.statistics import GpuStatistics, Statistics, Totals

_NUMBERS = ("depth", "reqs", "batches", "avg\nbatch", "images", "s/img")
"""Short titles, so that the table fits 80 columns."""


def stats_table(statistics: Statistics) -> RenderableType:
    """Return a table with one row per GPU, and lines with queue, strategy and totals."""
    gpus = statistics.per_gpu_stats
    table: RenderableType = _gpu_table(gpus) if gpus else Text("no GPU is registered", style="yellow")
    return Group(table, _queue_line(statistics), _totals_line(statistics.totals))


def _gpu_table(gpus: Sequence[GpuStatistics]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, header_style="bold")
    for name in ("worker", "host"):
        # Rich narrows these columns first; the cells do not wrap.
        table.add_column(name, overflow="ellipsis", vertical="bottom")
    table.add_column("gpu", justify="right", no_wrap=True, vertical="bottom")
    table.add_column("model", overflow="ellipsis", vertical="bottom")
    table.add_column("state", no_wrap=True, vertical="bottom")
    for name in _NUMBERS:
        table.add_column(name, justify="right", no_wrap=True, vertical="bottom")
    for gpu in gpus:
        table.add_row(*_row(gpu))
    return table


def _row(gpu: GpuStatistics) -> list[Text]:
    texts = (
        gpu.worker,
        gpu.host,
        gpu.gpu_id,
        models_text(gpu.models),
        gpu.state,
        f"{gpu.current_queue_depth}/{gpu.capacity}",
        gpu.total_requests,
        gpu.total_batches,
        f"{gpu.avg_batch_size:.1f}",
        gpu.total_images,
        "-" if gpu.seconds_per_image is None else f"{gpu.seconds_per_image:.3g}",
    )
    # As `Text`: brackets in a name are not markup.
    cells = [Text(str(text), no_wrap=True, overflow="ellipsis") for text in texts]
    cells[4].stylize(STATE_STYLES.get(gpu.state, ""))
    return cells


def _queue_line(statistics: Statistics) -> Text:
    parts = [
        f"strategy {statistics.strategy}",
        f"GPUs {statistics.num_gpus}",
        f"queued {statistics.queued_requests}",
        f"at workers {statistics.requests.dispatched}",
        f"clients {statistics.clients}",
        f"up {format_duration(statistics.uptime_seconds)}",
    ]
    return Text(" · ".join(parts))


def _totals_line(totals: Totals) -> Text:
    failed = {code: number for code, number in totals.answered.items() if code != "result"}
    parts = [f"accepted {totals.accepted}", f"results {totals.answered.get('result', 0)}"]
    parts += [f"{code} {number}" for code, number in sorted(failed.items())]
    for name, numbers in (("rejected", totals.rejected), ("requeued", totals.requeued)):
        if count := sum(numbers.values()):
            parts.append(f"{name} {count}")
    if totals.workers_lost:
        parts.append(f"workers lost {totals.workers_lost}")
    return Text("totals: " + " · ".join(parts), style="dim")


def models_table(models: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Return a table with one row per model: defaults, numbers of ready and warm workers, and the workers."""
    if not models:
        return Text("no models; start a worker with imagegen-worker", style="yellow")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("model", overflow="fold")
    table.add_column("size", no_wrap=True)
    table.add_column("steps", justify="right", no_wrap=True)
    table.add_column("ready", justify="right", no_wrap=True)
    table.add_column("warm", justify="right", no_wrap=True)
    table.add_column("workers", overflow="fold")
    for model in models:
        workers = model["workers"]
        name = Text(model["model"], style="bold" if model["default"] else "")
        table.add_row(
            name.append(" (default)", style="cyan") if model["default"] else name,
            *_defaults(model.get("takes")),
            Text(f"{sum(worker['state'] == 'ready' for worker in workers)}/{len(workers)}"),
            Text(str(sum(worker["warm"] for worker in workers))),
            Text(", ").join(_worker_name(worker) for worker in workers) or Text("none", style="yellow"),
        )
    return table


def _defaults(takes: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return the default size and steps of a model; dashes if unknown."""
    return (
        ("-", "-") if takes is None else (f"{takes['width']}x{takes['height']}", f"{takes['num_inference_steps']}")
    )


def _worker_name(worker: Mapping[str, Any]) -> Text:
    name = Text(str(worker["worker"]), style=STATE_STYLES.get(str(worker["state"]), ""))
    return name if worker["state"] == "ready" else name.append(f" {worker['state']}")
