"""The columns of the table of GPUs: what is in them, and which of them have room."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from imagegen_cli.dashboard.marks import load_bar, sparkline
from imagegen_protocol.statistics import GpuStatistics

STATE_STYLES = {"ready": "green", "draining": "yellow", "unreachable": "red", "stuck": "red", "gone": "red"}
GAP = 2
_BAR_WIDTH = 8
_TREND_WIDTH = 12


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a line of the table is about."""

    row: GpuStatistics
    rate: float | None
    """Images a second."""
    trend: Sequence[float]
    most: float
    """The highest of all trends, so that they can be compared."""
    gone: bool = False
    unheard: bool = False
    """Its broker is lost."""

    @property
    def state(self) -> str:
        """What the broker says of it."""
        if self.gone:
            return "gone"
        return "no news" if self.unheard else self.row.state

    def text(self, name: str, form: str = "") -> Text:
        """Return a number or a name of the statistics; a dash for None."""
        value = getattr(self.row, name)
        return Text("-" if value is None else format(value, form))


@dataclass(frozen=True, slots=True)
class Column:
    """A column; those of a higher `rank` go first where there is no room."""

    title: str
    rank: int
    cell: Callable[[Gpu], Text]
    is_number: bool = False
    cut_to: int | None = None
    """A name that is longer may be cut, to no less than this."""

    def width(self, cells: Sequence[Text]) -> int:
        """Return the cells that it needs at least."""
        longest = max((cell.cell_len for cell in cells), default=0)
        return max(cell_len(self.title), longest if self.cut_to is None else min(longest, self.cut_to))


def _load(gpu: Gpu) -> Text:
    if gpu.gone:
        return Text("-")
    depth, capacity = gpu.row.current_queue_depth, gpu.row.capacity
    bar = load_bar(gpu.row.running, depth, capacity, _BAR_WIDTH)
    return bar.append(f" {depth}/{capacity}", style="")


def _models(gpu: Gpu) -> Text:
    models = gpu.row.models
    more = f" +{len(models) - 1}" if len(models) > 1 else ""
    return Text(f"{models[0]}{more}" if models else "-")


def _failed(gpu: Gpu) -> Text:
    text = gpu.text("total_failed")
    text.stylize("red" if gpu.row.total_failed else "")
    return text


COLUMNS = (
    Column("host", 5, lambda gpu: gpu.text("host"), cut_to=12),
    Column("gpu", 4, lambda gpu: gpu.text("gpu_id"), is_number=True),
    Column("worker", 0, lambda gpu: gpu.text("worker"), cut_to=20),
    Column("device", 11, lambda gpu: gpu.text("device")),
    Column("model", 3, _models, cut_to=14),
    Column("state", 0, lambda gpu: Text(f"● {gpu.state}", style=STATE_STYLES.get(gpu.state, ""))),
    Column("load", 0, _load),
    Column("run", 6, lambda gpu: Text("-") if gpu.gone else gpu.text("running"), is_number=True),
    Column("img/s", 0, lambda gpu: Text("-" if gpu.rate is None else f"{gpu.rate:.2f}"), is_number=True),
    Column("trend", 1, lambda gpu: Text(sparkline(gpu.trend, gpu.most, _TREND_WIDTH), style="cyan")),
    Column("batch", 8, lambda gpu: gpu.text("avg_batch_size", ".1f"), is_number=True),
    Column("s/img", 2, lambda gpu: gpu.text("seconds_per_image", ".3g"), is_number=True),
    Column("requests", 9, lambda gpu: gpu.text("total_requests"), is_number=True),
    Column("failed", 7, _failed, is_number=True),
)


def fitting(gpus: Sequence[Gpu], width: int) -> list[tuple[Column, list[Text]]]:
    """Return the columns that have room side by side, with their cells."""
    made = [(column, [column.cell(gpu) for gpu in gpus]) for column in COLUMNS]
    widths = {column.title: column.width(cells) for column, cells in made}
    kept = list(COLUMNS)
    for column in sorted(COLUMNS, key=lambda column: -column.rank):
        if sum(widths[one.title] for one in kept) + GAP * (len(kept) - 1) <= width or not column.rank:
            break
        kept.remove(column)
    return [(column, cells) for column, cells in made if column in kept]
