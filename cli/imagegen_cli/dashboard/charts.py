"""Bars and sparklines made of characters."""

from collections.abc import Iterable

from rich.text import Text

_LEVELS = "▁▂▃▄▅▆▇"
"""Blocks of increasing height, except the full block, which would touch the line above."""


def sparkline(values: Iterable[float], most: float, width: int) -> str:
    """Return the last `width` values as blocks, scaled to the maximum `most`, the newest on the right."""
    shown = list(values)[-width:]
    top = len(_LEVELS) - 1
    levels = [min(top, max(value > 0, round(value / most * top))) if most > 0 else 0 for value in shown]
    return "".join(_LEVELS[level] for level in levels).rjust(width)


def load_bar(running: int, depth: int, capacity: int, width: int) -> Text:
    """Return a bar of `width` cells that shows a worker's running images, waiting images and free capacity."""
    capacity = max(capacity, depth, 1)
    held = _cells(depth, capacity, width)
    busy = min(held, _cells(running, capacity, width))
    return Text.assemble(
        ("━" * busy, "green"), ("╍" * (held - busy), "yellow"), ("┄" * (width - held), "bright_black")
    )


def _cells(part: int, whole: int, width: int) -> int:
    # Only exactly empty and full bars look empty and full.
    cells = round(part / whole * width)
    if 0 < part < whole:
        return min(width - 1, max(1, cells))
    return cells
