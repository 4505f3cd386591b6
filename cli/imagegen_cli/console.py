"""Output of tables and progress bars; a module of its own, because rich takes long to import."""

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from imagegen_protocol.terminal import escape_controls


class EscapingConsole(Console):
    """A console that escapes control characters in everything that it prints, except its own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of a renderable."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(escape_controls(segment.text), segment.style)
