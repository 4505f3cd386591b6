"""Screen of `imagegen top`: brokers, fleet totals, and the table of GPUs."""

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from imagegen_cli.dashboard.charts import sparkline
from imagegen_cli.dashboard.columns import GAP, GpuRow, select_columns
from imagegen_cli.durations import format_duration, format_estimate
from imagegen_client.fleet import BrokerStatus, FleetSnapshot, images_per_second, sorted_workers

Trends = Mapping[str, Sequence[float]]
"""Images per second of each worker in the last snapshots, the newest last."""

_FLEET_TREND_WIDTH = 24


def screen(
    before: FleetSnapshot | None,
    now: FleetSnapshot,
    trends: Trends,
    *,
    width: int,
    height: int | None = None,
    hint: str = "",
) -> RenderableType:
    """Render two snapshots in at most `width` cells and `height` lines.

    Columns and GPUs that do not fit are left out. Workers that left since `before` are shown as gone. `hint` is
    shown in the upper right corner.
    """
    gpus = _gpus(before, now, trends)
    lines = [_title(hint, width), *(_broker_line(broker, width) for broker in now.brokers)]
    lines += [_fleet_line(gpus, trends, width), Text("")]
    if not gpus:
        return Group(*lines, Text("no GPU is registered; start one with imagegen-worker", style="yellow"))
    shown, left_out = _fit(len(gpus), None if height is None else height - len(lines))
    parts: list[RenderableType] = [*lines, _table(gpus[:shown], width, all_of=gpus)]
    if left_out:
        parts.append(Text(f"… {left_out} more GPUs; enlarge the window to see them", style="yellow"))
    return Group(*parts)


def _fit(number: int, lines: int | None) -> tuple[int, int]:
    """Return the numbers of GPUs shown and left out; the table has a header line."""
    if lines is None or number + 1 <= lines:
        return number, 0
    shown = max(0, lines - 2)
    return shown, number - shown


def _gpus(before: FleetSnapshot | None, now: FleetSnapshot, trends: Trends) -> list[GpuRow]:
    rates = images_per_second(before, now)
    most = max((rate for trend in trends.values() for rate in trend), default=0.0)
    workers = now.workers()
    gone = {name: row for name, row in (before.workers() if before else {}).items() if name not in workers}
    rows = sorted_workers({**workers, **gone})
    stale = now.stale_workers()
    return [
        GpuRow(
            row,
            None if name in gone or name in stale else rates.get(name),
            trends.get(name, ()),
            most,
            removed=name in gone,
            stale=name in stale,
        )
        for name, row in rows
    ]


def _title(hint: str, width: int) -> Text:
    title = Text("imagegen top", style="bold")
    return title.append(hint.rjust(width - title.cell_len), style="dim") if hint else title


def _broker_line(broker: BrokerStatus, width: int) -> Text:
    statistics = broker.statistics
    if statistics is None or broker.lost_for is not None:
        problem = (
            "no answer yet" if statistics is None else f"unreachable for {format_estimate(broker.lost_for or 0.0)}"
        )
        head = Text.assemble(("○ ", "red"), (broker.endpoint, "bold red"))
        return _line(head, [f"{problem}; retrying"], width)
    wait = broker.wait_seconds
    pieces = [
        f"queued {statistics.queued_requests}",
        f"{statistics.answers_per_second:.1f} answers/s",
        "wait unknown" if wait is None else f"estimated wait {format_estimate(wait)}" if wait else "no wait",
        f"clients {statistics.clients}",
        statistics.strategy,
        f"up {format_duration(statistics.uptime_seconds)}",
    ]
    return _line(Text.assemble(("● ", "green"), (broker.endpoint, "bold")), pieces, width)


def _fleet_line(gpus: Sequence[GpuRow], trends: Trends, width: int) -> Text:
    there = [gpu for gpu in gpus if not gpu.removed]
    load = sum(gpu.row.current_queue_depth for gpu in there)
    capacity = sum(gpu.row.capacity for gpu in there)
    pieces = [f"load {load} of {capacity} images"]
    if unready := sum(gpu.state != "ready" for gpu in there):
        pieces.append(f"{unready} not ready")
    rate = sum(gpu.rate or 0.0 for gpu in there)
    head = Text.assemble(
        "  ",
        (f"{len(there)} GPU{'' if len(there) == 1 else 's'}", "bold"),
        " · ",
        (f"{rate:.2f} images/s", "bold"),
    )
    total = [sum(values) for values in _aligned(trends)][-_FLEET_TREND_WIDTH:]
    if trend := sparkline(total, max(total, default=0.0), len(total)):
        head.append(f" {trend}", style="cyan")
    return _line(head, pieces, width)


def _aligned(trends: Trends) -> list[list[float]]:
    """Return the values of each snapshot; a shorter trend lacks the oldest ones."""
    longest = max((len(trend) for trend in trends.values()), default=0)
    return [
        [trend[at - longest] for trend in trends.values() if len(trend) >= longest - at] for at in range(longest)
    ]


def _line(head: Text, pieces: Sequence[str], width: int) -> Text:
    """Return a line with as many of the pieces as fit."""
    for at, piece in enumerate(pieces):
        separator = " · " if at else "  "
        if head.cell_len + len(separator) + len(piece) > width:
            break
        head.append(separator, style="dim").append(piece, style="")
    head.truncate(width, overflow="ellipsis")
    return head


def _table(gpus: Sequence[GpuRow], width: int, *, all_of: Sequence[GpuRow]) -> Table:
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    columns = select_columns(all_of, width)
    for column, _ in columns:
        # Rich narrows names first; the cells do not wrap.
        table.add_column(
            column.title,
            justify="right" if column.is_number else "left",
            no_wrap=column.cut_to is None,
            overflow="ellipsis",
        )
    for at, gpu in enumerate(gpus):
        cells = [cells[at] for _, cells in columns]
        for cell in cells:
            cell.no_wrap, cell.overflow = True, "ellipsis"
        table.add_row(*cells, style="dim" if gpu.removed or gpu.stale else "")
    return table
