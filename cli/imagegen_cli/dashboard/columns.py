"""Columns of the GPU table, and the choice of those that fit the terminal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from imagegen_cli.dashboard.charts import load_bar, sparkline
from imagegen_protocol.statistics import GpuStatistics

STATE_STYLES = {"ready": "green", "draining": "yellow", "unreachable": "red", "stuck": "red", "gone": "red"}
GAP = 2
_BAR_WIDTH = 8
_TREND_WIDTH = 12


@dataclass(frozen=True, slots=True)
class GpuRow:
    """One row of the table."""

    row: GpuStatistics
    rate: float | None
    """Images per second; None if unknown."""
    trend: Sequence[float]
    most: float
    """Maximum of all trends, their common scale."""
    removed: bool = False
    stale: bool = False
    """Known only from unreachable brokers."""

    @property
    def state(self) -> str:
        """State to show."""
        if self.removed:
            return "gone"
        return "stale" if self.stale else self.row.state

    def text(self, name: str, form: str = "") -> Text:
        """Return a field of the statistics as text; a dash for None."""
        value = getattr(self.row, name)
        return Text("-" if value is None else format(value, form))


@dataclass(frozen=True, slots=True)
class Column:
    """A column; where the terminal is too narrow, columns of the highest `rank` are dropped first."""

    title: str
    rank: int
    cell: Callable[[GpuRow], Text]
    is_number: bool = False
    cut_to: int | None = None
    """Width to which longer texts may be truncated; None: never truncated."""

    def width(self, cells: Sequence[Text]) -> int:
        """Return the minimum width in cells."""
        longest = max((cell.cell_len for cell in cells), default=0)
        return max(cell_len(self.title), longest if self.cut_to is None else min(longest, self.cut_to))


def _load(gpu: GpuRow) -> Text:
    if gpu.removed:
        return Text("-")
    depth, capacity = gpu.row.current_queue_depth, gpu.row.capacity
    bar = load_bar(gpu.row.running, depth, capacity, _BAR_WIDTH)
    return bar.append(f" {depth}/{capacity}", style="")


def models_text(models: Sequence[str]) -> str:
    """Return the first model and the number of others."""
    more = f" +{len(models) - 1}" if len(models) > 1 else ""
    return f"{models[0]}{more}" if models else "-"


def _failed(gpu: GpuRow) -> Text:
    text = gpu.text("total_failed")
    text.stylize("red" if gpu.row.total_failed else "")
    return text


COLUMNS = (
    Column("host", 5, lambda gpu: gpu.text("host"), cut_to=12),
    Column("gpu", 4, lambda gpu: gpu.text("gpu_id"), is_number=True),
    Column("worker", 0, lambda gpu: gpu.text("worker"), cut_to=20),
    Column("device", 11, lambda gpu: gpu.text("device")),
    Column("model", 3, lambda gpu: Text(models_text(gpu.row.models)), cut_to=14),
    Column("state", 0, lambda gpu: Text(f"● {gpu.state}", style=STATE_STYLES.get(gpu.state, ""))),
    Column("load", 0, _load),
    Column("run", 6, lambda gpu: Text("-") if gpu.removed else gpu.text("running"), is_number=True),
    Column("img/s", 0, lambda gpu: Text("-" if gpu.rate is None else f"{gpu.rate:.2f}"), is_number=True),
    Column("trend", 1, lambda gpu: Text(sparkline(gpu.trend, gpu.most, _TREND_WIDTH), style="cyan")),
    Column("batch", 8, lambda gpu: gpu.text("avg_batch_size", ".1f"), is_number=True),
    Column("s/img", 2, lambda gpu: gpu.text("seconds_per_image", ".3g"), is_number=True),
    Column("requests", 9, lambda gpu: gpu.text("total_requests"), is_number=True),
    Column("failed", 7, _failed, is_number=True),
)


def select_columns(gpus: Sequence[GpuRow], width: int) -> list[tuple[Column, list[Text]]]:
    """Return the columns that fit into `width` cells, with their contents."""
    filled = [(column, [column.cell(gpu) for gpu in gpus]) for column in COLUMNS]
    widths = {column.title: column.width(cells) for column, cells in filled}
    selected = list(COLUMNS)
    for column in sorted(COLUMNS, key=lambda column: -column.rank):
        if sum(widths[one.title] for one in selected) + GAP * (len(selected) - 1) <= width or not column.rank:
            break
        selected.remove(column)
    return [(column, cells) for column, cells in filled if column in selected]
