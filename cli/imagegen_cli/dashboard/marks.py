"""Small pictures made of characters: bars and sparklines."""

from collections.abc import Iterable

from rich.text import Text

_LEVELS = "▁▂▃▄▅▆▇"
"""Not the full block: two lines of them would be one."""


def sparkline(values: Iterable[float], most: float, width: int) -> str:
    """Return the last `width` values as a row of blocks, `most` the highest, the newest on the right."""
    shown = list(values)[-width:]
    top = len(_LEVELS) - 1
    levels = [min(top, max(value > 0, round(value / most * top))) if most > 0 else 0 for value in shown]
    return "".join(_LEVELS[level] for level in levels).rjust(width)


def load_bar(running: int, depth: int, capacity: int, width: int) -> Text:
    """Return a bar of what a worker has: running, waiting, free."""
    capacity = max(capacity, depth, 1)
    held = _cells(depth, capacity, width)
    busy = min(held, _cells(running, capacity, width))
    return Text.assemble(
        ("━" * busy, "green"), ("╍" * (held - busy), "yellow"), ("┄" * (width - held), "bright_black")
    )


def _cells(part: int, whole: int, width: int) -> int:
    # Little is more than nothing, and nearly full is not full.
    cells = round(part / whole * width)
    if 0 < part < whole:
        return min(width - 1, max(1, cells))
    return cells
