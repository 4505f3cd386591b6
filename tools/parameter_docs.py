"""Write the reference tables of request parameters and messages into the docs: `python -m tools.parameter_docs`.

A table is between the comments `<!-- parameters: NAME -->`, or `<!-- message: STRUCT -->`, and `<!-- end -->`.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from imagegen_protocol.declaration import TASKS, Parameter
from imagegen_protocol.parameters import PARAMETERS
from imagegen_protocol.request import BODY_PARAMETERS
from tools.message_docs import message_table

DOCS = Path(__file__).parents[1] / "docs"
_SECTION = re.compile(r"(<!-- (parameters|message): (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_WIRE_TYPES = {
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "string": "str",
    "map": "map of str to value",
    "image": "nil",
    "images": "list of nil",
}
_HTTP_TYPES = {"string": "text", "map": "object", "image": "image", "images": "list of images"}
_INPUTS = [
    "`inputs`",
    "list of str",
    "each path once",
    "none",
    "Paths of the image frames after the body, in order.",
]
_SIZE = [
    ["`size`", "text", "`WIDTHxHEIGHT`, `auto`", "the model's", "Width and height of the images, in pixels."],
    ["`width`, `height`", "integer", "8 … 8192 pixels", "the model's", "In place of `size`."],
    ["`steps`", "integer", "1 … 1000 steps", "the model's", "Short for `num_inference_steps`."],
]


def wire_table() -> list[list[str]]:
    """Return the keys of a request's body, header row first."""
    rows = [["key", "type", "range", "default", "description"]]
    for name, parameter in BODY_PARAMETERS.items():
        rows.append(
            [f"`{name}`", _wire_type(parameter), _range(parameter), _default(parameter), _words(parameter)]
        )
    return [*rows, _INPUTS]


def http_table() -> list[list[str]]:
    """Return the fields of the HTTP API, header row first."""
    rows = [["field", "type", "range", "default", "description"]]
    for parameter in PARAMETERS.values():
        if parameter.info.in_http:
            words = " ".join(filter(None, (_words(parameter), parameter.info.http_note)))
            type_ = "list of objects" if parameter.fields else _HTTP_TYPES.get(parameter.kind, parameter.kind)
            default = "required" if parameter.name == "prompt" else _default(parameter)
            rows.append([f"`{parameter.http_name}`", type_, _range(parameter), default, words])
    return [*rows, *_SIZE]


def option_table() -> list[list[str]]:
    """Return the options of `imagegen generate` that stand for parameters, header row first."""
    rows = [["option", "range", "default", "description"]]
    for name, parameter in PARAMETERS.items():
        if name != "prompt":
            metavar = f" {parameter.info.metavar}" if parameter.info.metavar else ""
            rows.append(
                [f"`{parameter.option}{metavar}`", _range(parameter), _default(parameter), _words(parameter)]
            )
    return rows


TABLES: dict[str, Callable[[], list[list[str]]]] = {
    "wire": wire_table,
    "http": http_table,
    "options": option_table,
}
PAGES = ("protocol.md", "gateway.md", "cli.md")


def render(text: str) -> str:
    """Return the text of a page with up-to-date tables."""

    def replace(found: re.Match[str]) -> str:
        start, kind, name, end = found.groups()
        rows = TABLES[name]() if kind == "parameters" else message_table(name)
        return f"{start}\n{_markdown(rows)}\n{end}"

    return _SECTION.sub(replace, text)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def _wire_type(parameter: Parameter) -> str:
    if not parameter.fields:
        return _WIRE_TYPES[parameter.kind]
    fields = " and ".join(f"`{field.name}` ({_WIRE_TYPES[field.kind]})" for field in parameter.fields)
    return f"list of maps with {fields}"


def _range(parameter: Parameter) -> str:
    if parameter.choices:
        return ", ".join(f"`{choice}`" for choice in parameter.choices)
    parts = [_span(parameter)]
    if parameter.max_length is not None:
        parts.append(_up_to(parameter.min_length, parameter.max_length, "characters"))
    if parameter.pattern is not None:
        parts.append(f"matches `{parameter.pattern}`")
    if parameter.max_items is not None:
        parts.append(_up_to(None, parameter.max_items, "items"))
    parts += [f"`{field.name}`: {_range(field)}" for field in parameter.fields]
    return "; ".join(part for part in parts if part)


def _span(parameter: Parameter) -> str:
    if parameter.maximum is None:
        return ""
    lowest = "0 < …" if parameter.exclusive_minimum == 0 else f"{_number(parameter.minimum)} …"
    most = f"≤ {_number(parameter.maximum)}" if lowest.startswith("0 <") else _number(parameter.maximum)
    return f"{lowest} {most} {parameter.info.unit or ''}".rstrip()


def _number(value: int | float | None) -> str:
    if value == 2**63 - 1:
        return "2⁶³−1"
    return f"{value:g}".replace("-", "−") if isinstance(value, float) else str(value).replace("-", "−")


def _up_to(least: int | None, most: int, unit: str) -> str:
    return f"≤ {most:,} {unit}" if least is None else f"{least} … {most:,} {unit}"


def _default(parameter: Parameter) -> str:
    return parameter.default_words or "required"


def _words(parameter: Parameter) -> str:
    tasks = parameter.info.tasks
    return parameter.info.description + ("" if tasks == TASKS else f" Only for {' and '.join(tasks)}.")


def main() -> None:
    """Write the tables."""
    for name in PAGES:
        path = DOCS / name
        path.write_text(render(path.read_text()))


if __name__ == "__main__":
    main()
