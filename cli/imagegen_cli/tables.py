"""What the broker's statistics look like on a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from imagegen_cli.durations import clock

_STATE_STYLES = {"ready": "green", "draining": "yellow", "unreachable": "red", "stuck": "red"}
_NUMBERS = ("depth", "reqs", "batches", "avg\nbatch", "images", "s/img")
"""Short, so that the names beside them have room on 80 columns."""


def stats_table(statistics: Mapping[str, Any]) -> RenderableType:
    """Return what `Client.stats` gave as a table, a row a GPU, and lines on queue, strategy and totals."""
    gpus = statistics.get("per_gpu_stats", [])
    table: RenderableType = _gpu_table(gpus) if gpus else Text("no GPU is registered", style="yellow")
    return Group(table, _queue_line(statistics), _totals_line(statistics.get("totals", {})))


def _gpu_table(gpus: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, header_style="bold")
    for name in ("worker", "host"):
        # Rich narrows these columns first; the cells themselves don't wrap.
        table.add_column(name, overflow="ellipsis", vertical="bottom")
    table.add_column("gpu", justify="right", no_wrap=True, vertical="bottom")
    table.add_column("model", overflow="ellipsis", vertical="bottom")
    table.add_column("state", no_wrap=True, vertical="bottom")
    for name in _NUMBERS:
        table.add_column(name, justify="right", no_wrap=True, vertical="bottom")
    for gpu in gpus:
        table.add_row(*_row(gpu))
    return table


def _row(gpu: Mapping[str, Any]) -> list[Text]:
    models = gpu.get("models", [])
    more = f" +{len(models) - 1}" if len(models) > 1 else ""
    state = str(gpu.get("state", "?"))
    seconds = gpu.get("seconds_per_image")
    texts = (
        gpu.get("worker", "?"),
        gpu.get("host", "?"),
        gpu.get("gpu_id", "?"),
        f"{models[0]}{more}" if models else "-",
        state,
        f"{gpu.get('current_queue_depth', '?')}/{gpu.get('capacity', '?')}",
        gpu.get("total_requests", "?"),
        gpu.get("total_batches", "?"),
        f"{gpu.get('avg_batch_size', 0.0):.1f}",
        gpu.get("total_images", "?"),
        "-" if seconds is None else f"{seconds:.3g}",
    )
    # As texts: a name with brackets is no markup.
    cells = [Text(str(text), no_wrap=True, overflow="ellipsis") for text in texts]
    cells[4].stylize(_STATE_STYLES.get(state, ""))
    return cells


def _queue_line(statistics: Mapping[str, Any]) -> Text:
    requests = statistics.get("requests", {})
    parts = [
        f"strategy {statistics.get('strategy', '?')}",
        f"GPUs {statistics.get('num_gpus', 0)}",
        f"queued {statistics.get('queued_requests', 0)}",
        f"at workers {requests.get('dispatched', 0)}",
        f"clients {statistics.get('clients', 0)}",
        f"up {clock(statistics.get('uptime_seconds', 0))}",
    ]
    return Text(" · ".join(parts))


def _totals_line(totals: Mapping[str, Any]) -> Text:
    answered: Mapping[str, int] = totals.get("answered", {})
    failed = {code: number for code, number in answered.items() if code != "result"}
    parts = [f"accepted {totals.get('accepted', 0)}", f"results {answered.get('result', 0)}"]
    parts += [f"{code} {number}" for code, number in sorted(failed.items())]
    for name, numbers in (("refused", totals.get("rejected", {})), ("requeued", totals.get("requeued", {}))):
        if count := sum(numbers.values()):
            parts.append(f"{name} {count}")
    if lost := totals.get("workers_lost", 0):
        parts.append(f"workers lost {lost}")
    return Text("totals: " + " · ".join(parts), style="dim")


def models_table(models: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Return models with their defaults and workers, a row each; with how many are ready and how many warm."""
    if not models:
        return Text("no model is served; start a worker with imagegen-worker", style="yellow")
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
            Text(", ").join(_worker_name(worker) for worker in workers) or Text("none for now", style="yellow"),
        )
    return table


def _defaults(takes: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return the default size and steps of a model."""
    return (
        ("-", "-") if takes is None else (f"{takes['width']}x{takes['height']}", f"{takes['num_inference_steps']}")
    )


def _worker_name(worker: Mapping[str, Any]) -> Text:
    name = Text(str(worker["worker"]), style=_STATE_STYLES.get(str(worker["state"]), ""))
    return name if worker["state"] == "ready" else name.append(f" {worker['state']}")
