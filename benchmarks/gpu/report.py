"""The report: one JSON document, and Markdown tables that fit into a page between two marks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imagegen_common.files import replacing

BEGIN, END = "<!-- gpu: from a script -->", "<!-- gpu: end -->"


def markdown(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown."""
    about = report["about"]
    stages = report["stages"]
    lines = [
        f"{about['device']}, {about['memory_gib']:.0f} GiB; torch {about['torch']}, "
        f"diffusers {about['diffusers']}, Python {about['python']}; commit {about['commit']}."
        + (" The pretended card with tiny models: rates and times mean nothing." if about["small"] else ""),
        "",
        "| stage | outcome | seconds | limit | checks passed |",
        "|---|---|---|---|---|",
    ]
    for stage in stages:
        passed = sum(check["passed"] for check in stage["checks"])
        outcome = (
            stage["outcome"] if stage["outcome"] == "passed" else f"**{stage['outcome']}**: {stage['detail']}"
        )
        cells = [stage["title"], _one_line(outcome), f"{stage['seconds']:.1f}", f"{stage['limit']:.0f}"]
        lines.append(f"| {' | '.join(cells)} | {passed} of {len(stage['checks'])} |")
    for title, rows in _tables(stages).items():
        lines += ["", f"{title}:", "", *_table(rows)]
    return "\n".join([*lines, ""])


def _tables(stages: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the rows of all stages by table."""
    tables: dict[str, list[Mapping[str, Any]]] = {}
    for stage in stages:
        for title, rows in stage["tables"].items():
            tables.setdefault(title, []).extend(rows)
    return tables


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return lines + [f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in rows]


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return _one_line(str(value))


def _one_line(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def write(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the report into a folder; return the files."""
    data, text = folder / "gpu.json", folder / "gpu.md"
    for path, content in ((data, json.dumps(report, indent=1)), (text, markdown(report))):
        with replacing(path) as temporary:
            temporary.write_text(content)
    return [data, text]


def insert(report: Mapping[str, Any], page: Path) -> None:
    """Put the tables between the two marks of a page. Raises `ValueError` if it has none."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no place for the tables: {BEGIN} … {END}")
    page.write_text(f"{before}{BEGIN}\n{markdown(report)}{END}{after}")
