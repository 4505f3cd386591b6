"""The broker's metrics as a scraper reads them, and the demand for each model."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from imagegen_broker.metrics import BrokerCollector, gini
from imagegen_broker.scheduling.demand import demand
from imagegen_broker.server import Snapshot
from imagegen_protocol.messages import WorkerStats
from imagegen_protocol.statistics import ModelStatistics
from tests.promtool import needs_promtool, promtool
from tests.unit.broker.bench import Bench


def text_of(bench):
    """What a scrape of the bench's broker would give."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(BrokerCollector(Snapshot.of(bench.core, bench.now)))
    return generate_latest(registry).decode()


class Scrape:
    def __init__(self, bench):
        self.families = list(text_string_to_metric_families(text_of(bench)))
        self.samples = [sample for family in self.families for sample in family.samples]

    def __call__(self, name, **labels):
        (value,) = [
            sample.value
            for sample in self.samples
            if sample.name == f"imagegen_broker_{name}" and labels.items() <= sample.labels.items()
        ]
        return value


@pytest.fixture
def bench():
    return Bench().past_grace()


def rows(bench):
    return {row["model"]: row for row in demand(bench.core.view(bench.now).demand)}


def test_all_is_there_from_the_start_as_nothing(bench):
    got = Scrape(bench)
    assert got("answers_total", outcome="poison_request") == 0
    assert got("rejected_requests_total", reason="overloaded") == 0
    assert got("requeues_total", reason="worker_lost") == 0
    assert got("workers", state="stuck") == 0
    assert got("client_inequality_ratio") == got("busy_clients") == got("largest_client_requests") == 0
    assert got("request_duration_seconds_bucket", le="0.05") == 0
    assert got("request_duration_seconds_bucket", le="600.0") == 0
    assert got("max_requests") == 10_000


def test_no_label_tells_a_client_or_a_request(bench):
    bench.ready("w")
    bench.submit(1, client="someone")
    allowed = {"version", "state", "reason", "outcome", "strategy", "model", "worker", "gpu", "le"}
    for sample in Scrape(bench).samples:
        assert set(sample.labels) <= allowed
        assert "someone" not in sample.labels.values()


@needs_promtool
def test_promtool_has_nothing_to_say(bench):
    bench.ready("w")
    bench.submit(1)
    bench.beat("w", queued=bench.works("w"), seconds_per_image=0.5)
    assert promtool("check", "metrics", text=text_of(bench)) == (0, "")


def test_a_code_that_is_not_known_counts_as_other(bench):
    bench.ready("w")
    for number, code in enumerate(("from_the_future", "another", "out_of_memory")):
        bench.error("w", bench.submit(number), code)
    got = Scrape(bench)
    assert got("answers_total", outcome="other") == 2
    assert got("answers_total", outcome="out_of_memory") == 1


def test_what_a_worker_has(bench):
    bench.ready("w", capacity=4)
    bench.submit(1)
    bench.submit(2)
    got = Scrape(bench)
    own = {"worker": "w", "gpu": "0"}
    assert got("worker_queue_depth", **own) == got("worker_dispatches_total", **own) == 2
    assert got("worker_capacity_requests", **own) == 4
    bench.now += 0.5
    assert Scrape(bench)("worker_last_heard_seconds", **own) == 0.5


def test_the_backlog_is_the_work_that_is_not_done_in_seconds_of_one_device(bench):
    bench.ready("w", capacity=2)
    for number in range(5):
        bench.submit(number)
    bench.beat("w", running=bench.works("w"), stats=WorkerStats(), seconds_per_image=4.0)
    assert rows(bench) == {
        "m": ModelStatistics(
            model="m",
            workers=1,
            idle_workers=0,
            waiting=3,
            unfinished=5,
            seconds_per_request=4.0,
            backlog_seconds=20.0,
        )
    }
    got = Scrape(bench)
    assert got("backlog_seconds", model="m") == 20.0
    assert got("model_waiting_requests", model="m") == 3
    assert got("model_seconds_per_request", model="m") == 4.0


def test_workers_of_unlike_speed_count_by_what_they_make_together(bench):
    for name, seconds in (("fast", 1.0), ("slow", 3.0)):
        bench.ready(name)
        bench.beat(name, seconds_per_image=seconds)
    # Together four images in three seconds: two workers, 1.5 s each.
    assert rows(bench)["m"]["seconds_per_request"] == pytest.approx(1.5)
    assert rows(bench)["m"]["idle_workers"] == 2


def test_requests_for_several_images_count_as_much_as_those_before_them(bench):
    bench.ready("w")
    bench.beat("w", seconds_per_image=2.0, stats=WorkerStats(total_requests=10, total_images=30))
    bench.submit(1)
    assert rows(bench)["m"]["backlog_seconds"] == pytest.approx(6.0)


def test_a_model_whose_workers_are_gone_is_told_with_its_last_speed(bench):
    bench.ready("w", capacity=1)
    bench.beat("w", seconds_per_image=4.0)
    bench.submit(1, model="m")
    bench.submit(2, model="m")
    bench.advance(7.0)
    bench.submit(1, model="m")
    row = rows(bench)["m"]
    assert (row["workers"], row["waiting"], row["backlog_seconds"]) == (0, 1, 4.0)
    assert Scrape(bench)("model_workers", model="m") == 0


def test_a_worker_that_drains_or_hangs_serves_nobody(bench):
    bench.ready("w")
    bench.beat("w", state="draining")
    assert (rows(bench)["m"]["workers"], rows(bench)["m"]["idle_workers"]) == (0, 0)


def test_a_worker_of_several_models_has_each_request_counted_where_it_belongs(bench):
    bench.ready("w", models=["a", "b"])
    for number, model in enumerate(("a", "b", "b")):
        bench.submit(number, model=model)
    assert {name: row["unfinished"] for name, row in rows(bench).items()} == {"a": 1, "b": 2}


def test_models_that_nobody_knows_are_bounded(bench):
    for number in range(600):
        bench.submit(number, model=f"guess{number}")
    bench.submit(1000)
    shown = rows(bench)
    assert len(shown) == 501
    assert shown["other"]["waiting"] == 101
    assert sum(row["waiting"] for row in shown.values()) == 601


@pytest.mark.parametrize(
    ("counts", "expected"), [([], 0.0), ([7], 0.0), ([3, 3, 3], 0.0), ([1, 3], 0.25), ([1, 1, 1, 97], 0.72)]
)
def test_the_gini_coefficient(counts, expected):
    assert gini(counts) == pytest.approx(expected)


def test_one_client_with_much_shows(bench):
    for number in range(9):
        bench.submit(number, client="busy")
    bench.submit(100, client="other")
    got = Scrape(bench)
    assert (got("clients"), got("busy_clients"), got("largest_client_requests")) == (2, 2, 9)
    assert got("client_inequality_ratio") == pytest.approx(0.4)
