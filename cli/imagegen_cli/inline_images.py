"""Images in the terminal: by its graphics protocol (Kitty, Sixel) if it has one, else as coloured half blocks.

A module of its own, because the library queries the terminal when it is imported.
"""

import logging
from typing import TYPE_CHECKING, Any

from rich.console import Console
from textual_image import renderable

if TYPE_CHECKING:
    from PIL import Image

# The library would print a traceback for a terminal that does not answer its queries.
logging.getLogger(renderable.__name__.partition(".")[0]).setLevel(logging.CRITICAL)

MAX_ROWS = 20
"""Maximum height of an image in lines of the terminal."""
_LINES_BELOW = 4
"""Lines left for the text after the image."""


def fit(image_size: tuple[int, int], terminal_size: tuple[int, int]) -> tuple[int, int]:
    """Return the columns and lines of an image in a terminal; its aspect ratio is kept, as far as cells permit.

    `image_size`: width and height in pixels. `terminal_size`: columns and lines. A cell counts as twice as high as
    wide.
    """
    width, height = image_size
    columns, lines = terminal_size
    cells = 2 * width / height
    rows = max(1, min(MAX_ROWS, lines - _LINES_BELOW, int(columns / cells) or 1))
    return max(1, min(columns, round(rows * cells))), rows


def print_image(image: "Image.Image") -> None:
    """Print an image to stdout, which is a terminal."""
    console = Console()
    columns, rows = fit(image.size, (console.width, console.height))
    # Chosen by the library, by what the terminal answers.
    kind: Any = renderable.Image
    console.print(kind(image, width=columns, height=rows))
