"""The whole picture: the brokers above, the GPUs below."""

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from imagegen_cli.dashboard.columns import GAP, Gpu, fitting
from imagegen_cli.dashboard.marks import sparkline
from imagegen_cli.durations import clock, roughly
from imagegen_client.fleet import Broker, Look, images_per_second, in_order

Trends = Mapping[str, Sequence[float]]
"""The images a second of each worker at the last looks, the newest at the end."""

_FLEET_TREND_WIDTH = 24


def screen(
    before: Look | None, now: Look, trends: Trends, *, width: int, height: int | None = None, hint: str = ""
) -> RenderableType:
    """Return two looks as a picture of at most `width` cells and `height` lines.

    Columns that have no room are left out, and so are GPUs. Workers of `before` that are no more are shown as
    gone. `hint` stands in the upper right corner.
    """
    gpus = _gpus(before, now, trends)
    lines = [_title(hint, width), *(_broker_line(broker, width) for broker in now.brokers)]
    lines += [_fleet_line(gpus, trends, width), Text("")]
    if not gpus:
        return Group(*lines, Text("no GPU is registered; start one with imagegen-worker", style="yellow"))
    shown, left_out = _room(len(gpus), None if height is None else height - len(lines))
    parts: list[RenderableType] = [*lines, _table(gpus[:shown], width, all_of=gpus)]
    if left_out:
        parts.append(Text(f"… {left_out} more GPUs: they need a taller window", style="yellow"))
    return Group(*parts)


def _room(number: int, lines: int | None) -> tuple[int, int]:
    """Return how many GPUs are shown, and how many are not; the table has a head."""
    if lines is None or number + 1 <= lines:
        return number, 0
    shown = max(0, lines - 2)
    return shown, number - shown


def _gpus(before: Look | None, now: Look, trends: Trends) -> list[Gpu]:
    rates = images_per_second(before, now)
    most = max((rate for trend in trends.values() for rate in trend), default=0.0)
    workers = now.workers()
    gone = {name: row for name, row in (before.workers() if before else {}).items() if name not in workers}
    rows = in_order({**workers, **gone})
    unheard = now.unheard()
    return [
        Gpu(
            row,
            None if name in gone or name in unheard else rates.get(name),
            trends.get(name, ()),
            most,
            gone=name in gone,
            unheard=name in unheard,
        )
        for name, row in rows
    ]


def _title(hint: str, width: int) -> Text:
    title = Text("imagegen top", style="bold")
    return title.append(hint.rjust(width - title.cell_len), style="dim") if hint else title


def _broker_line(broker: Broker, width: int) -> Text:
    said = broker.statistics
    if said is None or broker.lost_for is not None:
        words = "no answer yet" if said is None else f"lost for {roughly(broker.lost_for or 0.0)}"
        head = Text.assemble(("○ ", "red"), (broker.endpoint, "bold red"))
        return _line(head, [f"{words}; asking again"], width)
    wait = broker.wait_seconds
    pieces = [
        f"queued {said.queued_requests}",
        f"{said.answers_per_second:.1f} answers/s",
        "wait unknown" if wait is None else f"wait about {roughly(wait)}" if wait else "no wait",
        f"clients {said.clients}",
        said.strategy,
        f"up {clock(said.uptime_seconds)}",
    ]
    return _line(Text.assemble(("● ", "green"), (broker.endpoint, "bold")), pieces, width)


def _fleet_line(gpus: Sequence[Gpu], trends: Trends, width: int) -> Text:
    there = [gpu for gpu in gpus if not gpu.gone]
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
    """Return the values of each look; a trend that is shorter began later."""
    longest = max((len(trend) for trend in trends.values()), default=0)
    return [
        [trend[at - longest] for trend in trends.values() if len(trend) >= longest - at] for at in range(longest)
    ]


def _line(head: Text, pieces: Sequence[str], width: int) -> Text:
    """Append the pieces that have room, the first ones before the others."""
    for at, piece in enumerate(pieces):
        separator = " · " if at else "  "
        if head.cell_len + len(separator) + len(piece) > width:
            break
        head.append(separator, style="dim").append(piece, style="")
    head.truncate(width, overflow="ellipsis")
    return head


def _table(gpus: Sequence[Gpu], width: int, *, all_of: Sequence[Gpu]) -> Table:
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    columns = fitting(all_of, width)
    for column, _ in columns:
        # Rich narrows names first; the cells themselves don't wrap.
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
        table.add_row(*cells, style="dim" if gpu.gone or gpu.unheard else "")
    return table
