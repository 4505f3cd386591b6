"""What reports contain of measured costs and loaded LoRAs."""

import dataclasses

import msgspec
import pytest

from imagegen_protocol import encode
from imagegen_protocol.costs import CostModel
from imagegen_protocol.limits import MAX_COST_MODELS, MAX_COUNT, MAX_DURATION_SECONDS, MAX_LORAS, MAX_NAME_LENGTH
from imagegen_protocol.messages import Ready, WorkerHeartbeat
from imagegen_worker.core import cost_reports
from imagegen_worker.core import events as ev
from imagegen_worker.core.broker_session import FULL_REPORT_INTERVAL
from imagegen_worker.core.cost_reports import CostReports, LoadedLoras, differs
from tests.unit.worker.bench import MODEL, Bench

MODEL_WITH_LORAS = dataclasses.replace(MODEL, takes_loras=True)

COSTS = CostModel(forward_seconds=0.1, megapixel_seconds=0.2, request_seconds=0.5, error=0.1, samples=10)


def changed(**fields):
    return msgspec.structs.replace(COSTS, **fields)


def measure(bench, costs=COSTS, model="m"):
    bench.event(ev.CostsMeasured(model, costs, 1.0))


def last(bench, kind=WorkerHeartbeat):
    return bench.messages(kind)[-1]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, False),
        ({"samples": 1000}, False),
        ({"forward_seconds": 0.104}, False),
        ({"forward_seconds": 0.106}, True),
        ({"megapixel_seconds": 0.1}, True),
        ({"request_seconds": 0.0}, True),
        ({"decode_megapixel_seconds": 0.001}, True),
        ({"error": 0.14}, False),
        ({"error": 0.2}, True),
        ({"error": None}, True),
        ({"load_seconds": 5.0}, True),
    ],
)
def test_costs_are_reported_again_when_one_changed_by_more_than_5_percent(fields, expected):
    assert differs(changed(**fields), COSTS) is expected


def test_a_heartbeat_reports_costs_once():
    bench = Bench()
    bench.beats(2)
    assert last(bench).costs == {}
    measure(bench)
    bench.beats(1)
    assert last(bench).costs == {"m": COSTS}
    measure(bench, changed(samples=20))
    bench.beats(1)
    assert last(bench).costs == {}
    measure(bench, changed(forward_seconds=0.2))
    bench.beats(1)
    assert last(bench).costs["m"].forward_seconds == 0.2


def test_ready_reports_all_costs_and_heartbeats_after_it_only_changes():
    bench = Bench()
    measure(bench)
    bench.beats(2)
    bench.sent.clear()
    bench.beat(session=0)
    assert last(bench, Ready).costs == {"m": COSTS}
    bench.beat(session=2, epoch=b"n" * 16)
    bench.beats(1)
    assert all(not each.costs for each in bench.messages(WorkerHeartbeat))


def test_each_broker_gets_the_costs():
    bench = Bench(brokers=2)
    measure(bench)
    for broker in (0, 1):
        bench.beats(1, broker=broker)
        assert any(each.costs for each in bench.messages(WorkerHeartbeat, broker))


def test_costs_are_repeated_now_and_then_because_a_heartbeat_may_be_lost():
    bench = Bench()
    measure(bench)
    bench.beats(FULL_REPORT_INTERVAL + 2)
    assert sum(bool(each.costs) for each in bench.messages(WorkerHeartbeat)) == 2


def test_a_load_time_is_part_of_the_costs():
    bench = Bench(warm=False)
    bench.event(ev.EngineReady((MODEL,), "cpu", 0.5, load_seconds=8.0))
    measure(bench)
    bench.beat(0)
    bench.beats(1)
    assert last(bench).costs["m"].load_seconds == 8.0
    bench.event(ev.ModelLoaded(MODEL, ("m",), 3.0))
    bench.beats(1)
    assert last(bench).costs["m"].load_seconds == 3.0


def test_a_report_with_long_names_stays_small():
    largest = dict.fromkeys(CostModel.__struct_fields__, MAX_DURATION_SECONDS / 3) | {"samples": MAX_COUNT}
    assert len(msgspec.msgpack.encode(CostModel(**largest))) <= cost_reports._COST_MODEL_BYTES
    reports = CostReports()
    for number in range(2 * MAX_COST_MODELS):
        reports.update(f"{number:03}" + "ü" * (MAX_NAME_LENGTH - 3), COSTS)
    costs = reports.all()
    assert len(encode(WorkerHeartbeat(session=1, costs=costs))) < cost_reports.MAX_COSTS_BYTES + 500
    assert f"{2 * MAX_COST_MODELS - 1:03}" in next(iter(costs)), "the model that was measured last"


def test_short_names_of_all_models_fit():
    reports = CostReports()
    for number in range(40):
        reports.update(f"model-{number}", COSTS)
    assert len(reports.all()) > 35


def test_loaded_loras_are_the_ones_used_last():
    loras = LoadedLoras()
    loras.use("m", ["first"])
    loras.use("m", [f"l{number}" for number in range(MAX_LORAS - 1)])
    loras.use("m", ["first"])
    loras.use("m", ["new"])
    assert set(loras.names()) == {"first", "new", *(f"l{number}" for number in range(1, MAX_LORAS - 1))}


def test_loras_of_evicted_models_and_those_that_failed_are_not_listed():
    loras = LoadedLoras()
    loras.use("a", ["ink"])
    loras.use("b", ["paper", "bad"])
    loras.discard("b", ["bad", "other"])
    loras.keep(("b",))
    assert loras.names() == ["paper"]


def test_lists_of_loras_stay_small():
    loras = LoadedLoras()
    for number in range(100):
        loras.use(f"m{number}", [f"{number:03}" + "ü" * (MAX_NAME_LENGTH - 3)])
    assert len(encode(WorkerHeartbeat(session=1, loaded_loras=loras.names()))) < cost_reports.MAX_LORAS_BYTES + 500


def test_heartbeats_list_the_loras_of_the_requests_that_ran():
    bench = Bench()
    bench.event(ev.ModelLoaded(MODEL_WITH_LORAS, ("m",)))
    bench.work(1, body={"loras": [{"name": "ink"}]})
    bench.start(1)
    assert last(bench).loaded_loras == ["ink"]
    bench.event(ev.ModelLoading("other", ("other",)))
    bench.beats(1)
    assert last(bench).loaded_loras == []


def test_a_lora_that_can_not_be_loaded_is_not_listed():
    bench = Bench()
    bench.event(ev.ModelLoaded(MODEL_WITH_LORAS, ("m",)))
    bench.work(1, body={"loras": [{"name": "broken"}]})
    bench.start(1)
    bench.fail(1, "invalid_request", "loras: there is no 'broken'")
    bench.beats(1)
    assert last(bench).loaded_loras == []
