"""Statistics as typed records: round trips, other versions, and the published schema."""

import json
import math
from pathlib import Path

import msgpack
import pytest

from imagegen_protocol import ProtocolError
from imagegen_protocol.capabilities import ModelCapabilities
from imagegen_protocol.statistics import (
    GpuStatistics,
    ModelStatistics,
    RequestCounts,
    Statistics,
    Totals,
    from_json,
    from_msgpack,
    json_schema,
    to_json,
    to_msgpack,
)

SCHEMA = Path(__file__).parents[3] / "docs/stats.schema.json"
FULL = Statistics(
    strategy="least-wait",
    default_model="m",
    model_traits={
        "m": ModelCapabilities(width=512, height=768, num_inference_steps=20, tasks={"text-to-image": None})
    },
    num_gpus=1,
    requests=RequestCounts(queued=4),
    totals=Totals(answered={"result": 5}),
    models=["m"],
    per_model_stats=[ModelStatistics(model="m", waiting=4, seconds_per_request=1.5)],
    per_gpu_stats=[GpuStatistics(worker="gpu0", current_queue_depth=16, capacity=16)],
)


@pytest.mark.parametrize(("write", "read"), [(to_json, from_json), (to_msgpack, from_msgpack)])
def test_encoded_statistics_decode_to_the_same(write, read):
    assert read(write(FULL)) == FULL


def test_every_field_is_written():
    assert set(json.loads(to_json(Statistics()))) == set(Statistics.__struct_fields__)
    (gpu,) = json.loads(to_json(FULL))["per_gpu_stats"]
    assert set(gpu) == set(GpuStatistics.__struct_fields__)


def test_fields_of_a_newer_broker_are_ignored():
    plain = json.loads(to_json(FULL))
    plain["new"] = {"a": [1]}
    plain["per_gpu_stats"][0]["new"] = 1
    plain["model_traits"]["video"] = {**plain["model_traits"]["m"], "tasks": {"text-to-video": None}}
    assert from_json(json.dumps(plain)) == FULL
    assert from_msgpack(msgpack.packb(plain)) == FULL


def test_fields_absent_from_an_older_broker_have_defaults():
    read = from_json('{"num_gpus": 1, "per_gpu_stats": [{"worker": "a"}]}')
    assert (read.num_gpus, read.queued_requests, read.totals.answered) == (1, 0, {})
    assert (read.per_gpu_stats[0].state, read.per_gpu_stats[0].capacity) == ("unknown", 0)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"\x90",
        *(
            msgpack.packb(content)
            for content in (
                {"num_gpus": "four"},
                {"num_gpus": 2**53 + 1},
                {"uptime_seconds": math.inf},
                {"answers_per_second": math.inf},
                {"heartbeat": {"interval_seconds": 0}},
                {"per_gpu_stats": [{"worker": "w", "gpu_id": 2**63}]},
                {"per_gpu_stats": [{"worker": "w", "busy_seconds": math.inf}]},
            )
        ),
    ],
    ids=repr,
)
def test_an_invalid_frame_is_a_protocol_error(frame):
    with pytest.raises(ProtocolError, match="the statistics can't be read: "):
        from_msgpack(frame)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"num_gpus": -1}', '{"num_gpus": 1' + "0" * 400 + "}", '{"uptime_seconds": NaN}']
)
def test_invalid_json_is_a_protocol_error(text):
    with pytest.raises(ProtocolError, match="the statistics can't be read: "):
        from_json(text)


def test_fields_are_also_items():
    assert FULL["num_gpus"] == FULL.num_gpus
    assert FULL["per_gpu_stats"][0]["capacity"] == 16
    for name in ("nothing", "__class__"):
        with pytest.raises(KeyError, match=name):
            FULL[name]


def test_the_published_schema_is_up_to_date():
    assert json.loads(SCHEMA.read_text()) == json_schema(), "run `python -m tools.stats_schema`"


def test_the_schema_describes_all_fields():
    schema = json_schema()
    assert set(schema["$defs"]["GpuStatistics"]["properties"]) == set(GpuStatistics.__struct_fields__)
    assert schema["$defs"]["GpuStatistics"]["properties"]["capacity"]["description"] == "Images."
    assert math.isfinite(schema["$defs"]["Statistics"]["properties"]["uptime_seconds"]["minimum"])
