"""The table in docs/models.md: one row for each pipeline class of diffusers that generates images."""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

import diffusers

from imagegen_worker.backends.diffusers.pipeline_classes import missing_packages, refusal
from tests.pipelines import registry

PAGE = Path(__file__).parents[2] / "docs/models.md"
BEGIN, END = "<!-- pipelines: begin -->", "<!-- pipelines: end -->"
HEAD = (
    "| pipeline | served | tasks | alone | in batches | images per forward | one call |\n"
    "|---|---|---|---|---|---|---|\n"
)
NOT_MEASURED = "by its class; not measured"
TASKS = {"text-to-image": "text", "image-to-image": "image", "inpainting": "inpaint"}


@dataclass(frozen=True)
class Line:
    """A row of the table, as text."""

    pipeline: str
    served: str
    tasks: str = ""
    alone: str = ""
    batches: str = ""
    per_forward: str = ""
    one_call: str = ""

    def markdown(self):
        """Return the row."""
        cells = (self.served, self.tasks, self.alone, self.batches, self.per_forward, self.one_call)
        return f"| `{self.pipeline}` | {' | '.join(cells)} |".replace("  ", " ")


def unmeasured(name):
    """Return the row of a class without measurement: what the worker says about the class."""
    reason = refusal(registry.exported()[name])
    return Line(name, f"no: {reason.removeprefix(name).strip()}" if reason else NOT_MEASURED)


def measured(name, seen):
    """Return the row of a class whose tiny pipeline was served."""
    if seen.refused:
        return Line(name, f"no: {seen.refused}")
    return Line(
        name,
        "yes",
        ", ".join(TASKS[task] for task in seen.tasks),
        "equal bits" if seen.alone == 0 else _bound(seen.alone),
        "equal bits" if seen.together == 0 else _bound(seen.together),
        f"{seen.images_per_forward:.1f} of {seen.most_per_forward:.1f}" if seen.most_per_forward else "",
        seen.one_call,
    )


def _bound(difference):
    """Return the power of ten above a difference, which other processors do not exceed."""
    for power in range(6, 0, -1):
        if difference < 10**-power:
            return f"< 1e-{power}"
    return f"{difference:.1f}"


def bound_of(text):
    """Return the largest difference that a cell allows."""
    if text == "equal bits":
        return 0.0
    return float(text.removeprefix("< "))


def write(lines):
    """Replace the table in the page by these rows; rows of classes that are not in it are kept."""
    known = {line.pipeline: line for line in read()} | {line.pipeline: line for line in lines}
    rows = [known.get(name) or unmeasured(name) for name in registry.image_pipelines()]
    others = ", ".join(f"`{name.removesuffix('Pipeline')}`" for name in registry.other_pipelines())
    rest = textwrap.fill(
        f"Other pipelines of diffusers {diffusers.__version__} generate no images, and are refused with a message "
        f"that names what they generate: {others}.",
        width=120,
        break_long_words=False,
        break_on_hyphens=False,
    )
    text = f"{BEGIN}\n{HEAD}" + "".join(f"{row.markdown()}\n" for row in rows) + f"\n{rest}\n{END}"
    page = PAGE.read_text()
    before, _, after = page.partition(BEGIN)
    PAGE.write_text(before + text + after.partition(END)[2])


def read():
    """Return the rows of the page."""
    text = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    found = []
    for row in text.splitlines():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if match := re.fullmatch(r"`(\w+)`", cells[0]):
            found.append(Line(match[1], *cells[1:]))
    return found


def needs_packages(name):
    """Return whether a class is only a place holder here."""
    return bool(missing_packages(registry.exported()[name]))
