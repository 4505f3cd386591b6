"""`docs/protocol.md` is normative: it lists every message, key and error code, and no other."""

import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from imagegen_protocol import errors, limits, messages, transfers
from imagegen_protocol.capabilities import ModelCapabilities
from imagegen_protocol.conformance import (
    broker_requests,
    broker_sessions,
    broker_transfers,
    broker_workers,
    client_checks,
    worker_checks,
)
from imagegen_protocol.costs import CostModel, RequestShape
from imagegen_protocol.limits import MAX_SIDE_PIXELS
from imagegen_protocol.request import GenerationRequest
from tools.message_docs import message_table

PAGE = Path(__file__).parents[3] / "docs" / "protocol.md"
DIRECTIONS = {
    "client → broker": messages.ClientMessage,
    "broker → client": messages.BrokerToClient,
    "worker → broker": messages.WorkerMessage,
    "broker → worker": messages.BrokerToWorker,
}
MESSAGES = sorted(
    {kind for union in DIRECTIONS.values() for kind in get_args(union)}, key=lambda kind: kind.__name__
)
STRUCTS = [*MESSAGES, messages.WorkerReport, messages.WorkerStats, messages.ImageInfo, RequestShape, CostModel]
NEVER_SENT = {"error", "request_error", "broker_unreachable", "client_closed"}
"""Codes of base classes, and of errors that a client raises itself."""


def rows(heading):
    """Return the first two cells of each row of the table with this first header cell."""
    table = PAGE.read_text().split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    cells = (re.split(r"(?<!\\)\|", line)[1:3] for line in table.splitlines()[2:])
    return {name: second for first, second in cells for name in re.findall(r"`(\w+)`", first)}


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_each_message_type_is_listed_under_its_direction(direction):
    tags = {kind.__struct_config__.tag for kind in get_args(DIRECTIONS[direction])}
    assert set(rows(f"{direction}: `type`")) == tags


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
def test_each_key_of_a_message_is_in_a_table_on_the_page(kind):
    inherited = {field.name for base in kind.__bases__ for field in msgspec.structs.fields(base)} - {"v"}
    own = {field.name for field in msgspec.structs.fields(kind)} - {"v"} - inherited
    table = [f"`{name}`" for name in own]
    assert {row[0] for row in message_table(kind.__name__)[1:]} == set(table), "each field needs a docstring"
    if own:
        section = PAGE.read_text().split(f"<!-- message: {kind.__name__} -->")[1].split("<!-- end -->")[0]
        assert all(f"| {name} |" in section for name in table)


def test_a_message_table_states_type_range_default_and_description():
    table = {row[0]: row[1:] for row in message_table("Ready")}
    assert table["`gpu_id`"] == ["int", "0 … 65,535", "required", "Index of the GPU on its host."]
    assert table["`batching`"][:3] == ["str", "any", "`off`"]
    assert table["`models`"][:3] == ["list of names", "1 … 256 items", "required"]
    assert table["`gpu_uuid`"][:3] == ["name or nil", "1 … 128 characters", "nil"]
    assert table["`http`"][:3] == ["str or nil", "HOST:PORT, ≤ 300 characters", "nil"]
    table = {row[0]: row[1:] for row in message_table("Fetch")}
    assert table["`token`"][:3] == ["bin", "0 … 16 bytes", "empty"]
    assert table["`offset`"][:3] == ["int", "0 … 1,073,741,824", "required"]
    assert table["`chunk_bytes`"][:3] == ["int", "4,096 … 262,144", "262,144"]


def test_the_capabilities_have_a_row_for_each_field():
    text = re.search(r"^\*\*R-5\.9 Capabilities\.\*\*.*?\n\n(?=\*\*)", PAGE.read_text(), re.MULTILINE | re.DOTALL)[
        0
    ]
    assert set(ModelCapabilities.__struct_fields__) <= set(re.findall(r"`([a-z_]+)`", text))


@pytest.mark.parametrize(
    ("requirement", "values"),
    [
        ("R-1.1", [limits.MAX_HEADER_BYTES, limits.MAX_FRAMES, limits.MAX_CHUNK_BYTES]),
        ("R-1.5", [limits.MAX_IDS_PER_MESSAGE]),
        ("R-2.1", [limits.MAX_PAYLOAD_FRAMES, limits.MAX_FRAME_BYTES, limits.MAX_PAYLOAD_BYTES]),
        ("R-2.1", [limits.MAX_BODY_BYTES, limits.MAX_INLINE_BYTES, limits.DEFAULT_INLINE_BYTES]),
        ("R-2.6", [transfers.INITIAL_WINDOW_BYTES, transfers.MIN_WINDOW_BYTES]),
        ("R-4.14", [limits.MAX_PREVIEW_SIDE_PIXELS, limits.MAX_PREVIEW_BYTES]),
        ("R-5.9", [limits.MAX_CHOICES]),
    ],
)
def test_the_text_of_a_requirement_has_the_limits_of_the_code(requirement, values):
    text = PAGE.read_text().split(f"**{requirement} ")[1].split("\n**R-")[0]
    for value in values:
        assert re.search(rf"(?<![\d,]){value:,}(?![\d,]\d)", text), value


def test_the_body_has_a_row_for_each_field_and_no_other():
    text = PAGE.read_text().split("<!-- parameters: wire -->")[1].split("<!-- end -->")[0]
    assert set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE)) == set(GenerationRequest.__struct_fields__)
    assert f"8 … {MAX_SIDE_PIXELS} pixels" in text


def test_each_error_code_on_the_wire_has_a_row():
    kinds = (kind for kind in vars(errors).values() if isinstance(kind, type) and "code" in vars(kind))
    assert set(rows("code")) == {kind.code for kind in kinds} - NEVER_SENT | {errors.RETURNED}


def test_requirements_are_numbered_in_order_and_references_lead_to_them():
    text = PAGE.read_text()
    numbers = re.findall(r"^(?:\*\*|\| )R-(\d+)\.(\d+)\b", text, re.MULTILINE)
    for section in {section for section, _ in numbers}:
        own = [int(number) for each, number in numbers if each == section]
        assert own == list(range(1, len(own) + 1)), f"section {section}"
    assert set(re.findall(r"R-(\d+)\.(\d+)", text)) == set(numbers)
    sections = set(re.findall(r"^## (\d+)\. ", text, re.MULTILINE))
    assert set(re.findall(r"§(\d+)", text)) <= sections
    assert {section for section, _ in numbers} <= sections


@pytest.mark.parametrize(
    "module",
    [broker_requests, broker_sessions, broker_transfers, broker_workers, client_checks, worker_checks],
    ids=lambda module: module.__name__.rpartition(".")[2],
)
def test_each_check_of_the_conformance_tool_names_a_requirement(module):
    text = PAGE.read_text()
    for check in module.CHECKS.all:
        for requirement in [check.requirement, *re.findall(r"R-\d+\.\d+", check.title)]:
            assert re.search(rf"^(\*\*|\| ){re.escape(requirement)}\b", text, re.MULTILINE), requirement
