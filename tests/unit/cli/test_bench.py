"""Load test without a broker: percentiles, batches, report."""

import json
from types import SimpleNamespace

from imagegen_cli import bench
from imagegen_cli.bench import Report, percentile, run_burst
from imagegen_protocol import OutOfMemoryError, OverloadedError
from tests.statistics import gpu_statistics, statistics_of


def gpu(worker="a", models=("m",)):
    return gpu_statistics(worker=worker, models=list(models))


def statistics(*gpus, default_model="m"):
    return statistics_of(num_gpus=len(gpus), default_model=default_model, per_gpu_stats=gpus)


def test_only_workers_of_the_model_are_counted():
    told = statistics(gpu("a"), gpu("b", models=("n", "m")), gpu("c", models=("n",)), default_model="m")
    assert [bench.serving_gpus(told, model) for model in (None, "m", "n", "x")] == [2, 2, 2, 0]


def test_percentiles_use_the_nearest_rank():
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, share) for share in (50, 95, 99)] == [50.0, 95.0, 99.0]
    assert [percentile([1.0, 2.0, 3.0], share) for share in (50, 95, 99)] == [2.0, 3.0, 3.0]
    assert percentile([7.0], 50) == 7.0
    assert percentile([], 50) is None


def result(seconds, batch_size=1, images=1):
    return SimpleNamespace(batch_size=batch_size, total_seconds=seconds, formats=["png"] * images)


def test_the_report_of_a_burst():
    results = [result(1.0, batch_size=2), result(2.0, batch_size=2), result(3.0)]
    errors = [OverloadedError("full"), OutOfMemoryError("big"), OverloadedError("full")]
    report = Report(4.0, results, errors, 2)
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


def test_a_burst_of_failures_is_reported():
    numbers = Report(0.0, [], [OverloadedError("full")], 0).as_json()
    assert numbers["latency_seconds"] == {"p50": None, "p95": None, "p99": None}
    assert (numbers["throughput_images_per_second"], numbers["avg_batch_size"]) == (0.0, 0.0)
    assert json.dumps(numbers)


class FakeFleet:
    """A client whose requests are done at once."""

    def __init__(self, error=None):
        self.options = []
        self.error = error

    def stats(self, timeout):
        return statistics(gpu())

    def submit(self, prompt, **options):
        self.options.append(options)
        return SimpleNamespace(exception=lambda: self.error, result=lambda: result(0.5, batch_size=2))


def test_a_burst_counts_the_batches_of_its_own_results():
    fleet = FakeFleet()
    answers = []
    report = run_burst(fleet, "x", 4, {"width": 64, "seed": 2**63 - 2}, on_answer=lambda: answers.append(1))
    numbers = report.as_json()
    assert (numbers["total_batches"], numbers["avg_batch_size"], numbers["num_gpus"]) == (2, 2.0, 1)
    assert len(answers) == 4
    assert fleet.options == [{"width": 64, "seed": seed} for seed in (2**63 - 2, 2**63 - 1, 0, 1)]


def test_a_batch_shared_with_other_clients_counts_by_its_share():
    numbers = Report(1.0, [result(1.0, batch_size=8)] * 4 + [result(1.0, batch_size=0)], [], 1).as_json()
    assert (numbers["total_batches"], numbers["avg_batch_size"]) == (2, 3.333)


def test_a_burst_of_failed_requests_has_no_batches():
    fleet = FakeFleet(error=OutOfMemoryError("big"))
    report = run_burst(fleet, "x", 3, {})
    assert (report.batches, len(report.errors)) == (0, 3)
    assert [options["seed"] for options in fleet.options] == [None] * 3
