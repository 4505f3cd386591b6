"""Load test without a broker: totals, waiting, report."""

import json
from types import SimpleNamespace

import pytest

from imagegen_cli import bench
from imagegen_cli.bench import Report, TotalsDelta, percentile, run_burst, totals_deltas
from imagegen_protocol import OutOfMemoryError, OverloadedError
from tests.statistics import gpu_statistics, statistics_of


def gpu(worker="a", batches=0, requests=0, pid=1, host="h", models=("m",)):
    return gpu_statistics(
        worker=worker, host=host, pid=pid, total_batches=batches, total_batched_requests=requests,
        models=list(models),
    )  # fmt: skip


def statistics(*gpus, default_model="m"):
    return statistics_of(num_gpus=len(gpus), default_model=default_model, per_gpu_stats=gpus)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (gpu(batches=3, requests=10), gpu(batches=5, requests=16), TotalsDelta(2, 6, True)),
        (gpu(batches=3, requests=10), gpu(batches=3, requests=10), TotalsDelta(0, 0, True)),
        (None, gpu(batches=2, requests=6), TotalsDelta(2, 6, True)),
        (gpu(batches=9, requests=30), gpu(batches=1, requests=4, pid=2), TotalsDelta(1, 4, False)),
        (gpu(batches=1, requests=2), gpu(batches=9, requests=30, host="i"), TotalsDelta(9, 30, False)),
        (gpu(batches=9, requests=30), gpu(batches=1, requests=4), TotalsDelta(1, 4, False)),
    ],
)
def test_totals_deltas_of_a_worker(before, after, expected):
    earlier = statistics() if before is None else statistics(before)
    assert totals_deltas(earlier, statistics(after)) == {"a": expected}


def test_a_worker_that_left_is_not_counted():
    assert totals_deltas(statistics(gpu(batches=5, requests=9)), statistics()) == {}


def test_only_workers_of_the_model_are_counted():
    told = statistics(gpu("a"), gpu("b", models=("n", "m")), gpu("c", models=("n",)), default_model="m")
    assert [bench.serving_gpus(told, model) for model in (None, "m", "n", "x")] == [2, 2, 2, 0]


def test_percentiles_use_the_nearest_rank():
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, share) for share in (50, 95, 99)] == [50.0, 95.0, 99.0]
    assert [percentile([1.0, 2.0, 3.0], share) for share in (50, 95, 99)] == [2.0, 3.0, 3.0]
    assert percentile([7.0], 50) == 7.0
    assert percentile([], 50) is None


def result(worker, seconds, images=1):
    return SimpleNamespace(worker=worker, total_seconds=seconds, formats=["png"] * images)


def test_the_report_of_a_burst():
    results = [result("a", 1.0), result("a", 2.0), result("b", 3.0)]
    errors = [OverloadedError("full"), OutOfMemoryError("big"), OverloadedError("full")]
    report = Report(4.0, results, errors, {"a": TotalsDelta(1, 2, True), "b": TotalsDelta(1, 1, True)}, 2)
    assert report.as_json() == {
        "total_duration_seconds": 4.0,
        "requests": 6,
        "successful": 3,
        "failed": 3,
        "throughput_images_per_second": 0.75,
        "latency_seconds": {"p50": 2.0, "p95": 3.0, "p99": 3.0},
        "num_gpus": 2,
        "total_batches": 2,
        "avg_batch_size": 1.5,
    }
    assert report.failures == {"out_of_memory": 1, "overloaded": 2}
    assert report.missing == 0


def test_a_burst_of_failures_is_reported():
    numbers = Report(0.0, [], [OverloadedError("full")], {}, 0).as_json()
    assert numbers["latency_seconds"] == {"p50": None, "p95": None, "p99": None}
    assert (numbers["throughput_images_per_second"], numbers["avg_batch_size"]) == (0.0, 0.0)
    assert json.dumps(numbers)


def test_missing_totals_exclude_restarted_and_unknown_workers():
    results = [result("slow", 1.0)] * 5 + [result("restarted", 1.0)] * 5 + [result("gone", 1.0)] * 5
    grown = {"slow": TotalsDelta(1, 3, True), "restarted": TotalsDelta(0, 0, False)}
    assert Report(1.0, results, [], grown, 2).missing == 2


class FakeFleet:
    """A client whose requests are done, with statistics from a list; the last one repeats."""

    def __init__(self, *told, error=None):
        self.told = list(told)
        self.asked = 0
        self.options = []
        self.error = error

    def stats(self, timeout):
        self.asked += 1
        return self.told.pop(0) if len(self.told) > 1 else self.told[0]

    def submit(self, prompt, **options):
        self.options.append(options)
        return SimpleNamespace(exception=lambda: self.error, result=lambda: result("a", 0.5))


def test_a_burst_waits_for_the_totals(monkeypatch):
    monkeypatch.setattr(bench, "_POLL_SECONDS", 0.0)
    earlier = statistics(gpu(batches=10, requests=40))
    halfway = statistics(gpu(batches=11, requests=42))
    fleet = FakeFleet(earlier, earlier, halfway, statistics(gpu(batches=12, requests=44)))
    answers = []
    report = run_burst(fleet, "x", 4, {"width": 64, "seed": 2**63 - 2}, on_answer=lambda: answers.append(1))
    assert fleet.asked == 4
    assert (report.as_json()["total_batches"], report.as_json()["avg_batch_size"]) == (2, 2.0)
    assert len(answers) == 4
    assert fleet.options == [{"width": 64, "seed": seed} for seed in (2**63 - 2, 2**63 - 1, 0, 1)]


def test_waiting_for_the_totals_is_limited(monkeypatch):
    monkeypatch.setattr(bench, "_POLL_SECONDS", 0.0)
    monkeypatch.setattr(bench, "TOTALS_TIMEOUT_SECONDS", 0.0)
    report = run_burst(FakeFleet(statistics(gpu())), "x", 3, {})
    assert report.missing == 3
    assert report.as_json()["total_batches"] == 0


def test_a_burst_does_not_wait_for_totals_of_failed_requests():
    fleet = FakeFleet(statistics(gpu()), error=OutOfMemoryError("big"))
    report = run_burst(fleet, "x", 3, {})
    assert (fleet.asked, report.missing, len(report.errors)) == (2, 0, 3)
    assert [options["seed"] for options in fleet.options] == [None] * 3
