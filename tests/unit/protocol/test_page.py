"""`docs/protocol.md` is normative: whatever may stand in a message, and no other, is on the page."""

import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from imagegen_protocol import errors, messages
from imagegen_protocol.limits import MAX_SIDE_PIXELS
from imagegen_protocol.request import GenerationRequest

PAGE = Path(__file__).parents[3] / "docs" / "protocol.md"
HOLDING = {field.name for field in msgspec.structs.fields(messages.Holding)} - {"v"}
DIRECTIONS = {
    "client → broker": messages.ClientMessage,
    "broker → client": messages.BrokerToClient,
    "worker → broker": messages.WorkerMessage,
    "broker → worker": messages.BrokerToWorker,
}
NEVER_SENT = {"error", "request_error", "broker_unreachable", "client_closed"}
"""Codes of base classes, and of errors that a client gives itself."""


def own_fields(kind):
    """The names of a message's fields, less those that all have, or that the page tells elsewhere."""
    return {field.name for field in msgspec.structs.fields(kind)} - {"v"} - HOLDING


def names(text):
    """Whatever stands in backticks and outside of parentheses, which hold values."""
    return set(re.findall(r"`([a-z_]+)`", re.sub(r"\([^)]*\)", "", text)))


def rows(heading):
    """The rows of the table whose first column is headed so: the first cell's name, and the second cell."""
    table = PAGE.read_text().split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    cells = (re.split(r"(?<!\\)\|", line)[1:3] for line in table.splitlines()[2:])
    return {name: second for first, second in cells for name in re.findall(r"`(\w+)`", first)}


@pytest.mark.parametrize("heading", DIRECTIONS)
def test_each_message_is_on_the_page_with_all_its_keys(heading):
    kinds = {kind.__struct_config__.tag: kind for kind in get_args(DIRECTIONS[heading])}
    told = rows(heading)
    assert set(told) == set(kinds)
    for tag, kind in kinds.items():
        if kind is messages.Result or told[tag].strip() == "as above":
            continue
        # An answer to a worker's READY concerns no request; PROGRESS of a worker has no place in a queue.
        left_out = {
            ("broker → worker", "error"): {"request_id", "attempt", "retry_after_seconds"},
            ("worker → broker", "progress"): {"state", "place", "seconds_to_start"},
        }.get((heading, tag), set())
        assert names(told[tag]) == own_fields(kind) - left_out, tag


def section(number):
    """The text of a numbered section."""
    return re.search(rf"^## {number}\. .*?(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)[0]


def test_the_holding_is_told_whole():
    text = re.search(r"The \*\*holding\*\* is .*?\n\n", section(4), re.DOTALL)[0]
    totals = {field.name for field in msgspec.structs.fields(messages.WorkerStats)}
    assert HOLDING | totals <= set(re.findall(r"`([a-z_]+)`", text))


def test_the_keys_of_a_result_are_told_whole():
    images = {field.name for field in msgspec.structs.fields(messages.ImageInfo)}
    assert own_fields(messages.Result) | images <= set(re.findall(r"`([a-z_]+)`", section(6)))


def test_the_body_has_a_row_for_each_field_and_no_other():
    assert set(rows("key")) == {field.name for field in msgspec.structs.fields(GenerationRequest)}
    assert f"8 … {MAX_SIDE_PIXELS} pixels" in section(5)


def test_each_error_code_is_explained():
    kinds = (kind for kind in vars(errors).values() if isinstance(kind, type) and "code" in vars(kind))
    assert set(rows("code")) == {kind.code for kind in kinds} - NEVER_SENT
