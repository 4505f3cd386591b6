"""The exported metrics, and the HTTP endpoints."""

import dataclasses
import socket
import urllib.error
import urllib.request
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from imagegen_protocol.costs import CostModel
from imagegen_protocol.messages import ImageInfo
from imagegen_worker.config import WorkerConfig
from imagegen_worker.core import events as ev
from imagegen_worker.telemetry.gpu_metrics import GpuCollector
from imagegen_worker.telemetry.http import advertised_address
from imagegen_worker.telemetry.metrics import Metrics
from tests.promtool import needs_promtool, promtool
from tests.unit.worker.bench import MODEL, Bench
from tests.unit.worker.devices.standin import A, Card, StandIn


class Scrape:
    def __init__(self, text):
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def __call__(self, name, /, **labels):
        (value,) = [
            sample.value
            for sample in self.samples
            if sample.name == f"imagegen_worker_{name}" and labels.items() <= sample.labels.items()
        ]
        return value


@pytest.fixture
def clock():
    return [50.0]


CONFIG = WorkerConfig(backend="simulated", name="w", gpu=3, brokers=("tcp://a:1", "tcp://b:1"))
ON_CARD = dataclasses.replace(CONFIG, gpu_uuid=A, gpu_name="Card")


@pytest.fixture
def metrics(clock):
    metrics = Metrics(CONFIG, clock=lambda: clock[0])
    yield metrics
    metrics.close()


def scrape(metrics):
    return Scrape(generate_latest(metrics.registry).decode())


def test_names_help_texts_and_labels_follow_the_prometheus_conventions(metrics):
    metrics.registry.register(GpuCollector(ON_CARD, StandIn(Card(A))))
    got = scrape(metrics)
    assert len(got.families) >= 15
    for name, family in got.families.items():
        assert name.startswith("imagegen_worker_")
        assert family.documentation.endswith(".")
        assert family.type in ("gauge", "counter", "histogram")
        assert not name.endswith(("_total", "_count", "_sum", "_bucket", "_info")) or name.endswith(
            ("build_info", "gpu_info")
        )
        assert not any(word in name for word in ("milliseconds", "minutes", "kilobytes", "percent"))
    for sample in got.samples:
        family = next(f for f in got.families.values() if sample in f.samples)
        assert (family.type == "counter") == sample.name.endswith("_total")
        assert not sample.name.endswith("_created")
        if sample.name != "imagegen_worker_build_info":
            assert (sample.labels["worker"], sample.labels["gpu"]) == ("w", "3")
        known = {"worker", "gpu", "state", "outcome", "reason", "le", "version", "backend", "batching"} | {
            "uuid",
            "name",
            "clock",
            "model",
        }
        assert set(sample.labels) <= known


def test_all_metrics_are_exported_as_0_from_the_start(metrics):
    got = scrape(metrics)
    assert got("warm") == got("registered_brokers") == got("images_total") == 0
    assert got("brokers") == 2
    assert got("capacity_requests") == 16
    assert got("requests_total", outcome="out_of_memory") == 0
    assert got("calls_total", outcome="out_of_memory_split") == 0
    assert got("fallbacks_total", reason="unequal") == 0
    assert got("queue_wait_seconds_bucket", le="0.05") == 0
    assert got("generation_seconds_bucket", le="600.0") == 0


def test_metrics_of_the_core(metrics):
    bench = Bench(brokers=2)
    for number in range(4):
        bench.work(number)
    bench.start(0, 1, 2)
    bench.finish(0, bytes(100))
    bench.fail(1)
    bench.event(ev.CallDone(requests=2, images=3, steps=4, seconds=1.5, seconds_per_image=0.4))
    metrics.update(bench.core)
    got = scrape(metrics)
    assert got("queue_depth", state="queued") == 1
    assert got("queue_depth", state="running") == 1
    assert got("unreleased_answers") == 2
    assert got("unreleased_bytes") == bench.core.held.finished_bytes > 100
    assert got("requests_total", outcome="result") == 1
    assert got("requests_total", outcome="generation_failed") == 1
    assert got("batched_requests_total") == 2
    assert got("images_total") == 3
    assert got("busy_seconds_total") == 1.5
    assert (got("warm"), got("draining"), got("registered_brokers")) == (1, 0, 2)


def test_the_core_is_copied_by_update_only(metrics):
    bench = Bench()
    metrics.update(bench.core)
    bench.work(1)
    bench.start(1)
    bench.fail(1)
    got = scrape(metrics)
    assert got("requests_total", outcome="generation_failed") == 0
    assert got("unreleased_answers") == 0


def test_metrics_of_the_engine(metrics, clock):
    metrics.observe(ev.Started((1, 2)))
    clock[0] += 2.0
    assert scrape(metrics)("step_age_seconds") == 2.0
    metrics.observe(ev.Stepped((1, 2), 1, 4))
    assert scrape(metrics)("step_age_seconds") == 0.0
    metrics.observe(ev.CallFailed(8, 0.1, split=True))
    metrics.observe(ev.CallFailed(1, 0.1, split=False))
    metrics.observe(ev.CallFailed(1, 0.1, split=False, stopped=True))
    metrics.observe(ev.CallDone(requests=2, images=4, steps=4, seconds=1.6, seconds_per_image=0.4))
    for number, seconds in enumerate((0.01, 0.3, 700.0)):
        metrics.observe(
            ev.Finished(
                number=number,
                images=(),
                infos=(),
                batch_size=1,
                queue_seconds=seconds,
                generation_seconds=2 * seconds,
                encode_seconds=seconds / 2,
            )
        )
    metrics.observe(ev.CallDone(requests=1, images=0, rows=2, steps=1, seconds=0.1, seconds_per_image=0.4))
    clock[0] += 2.0
    metrics.observe(ev.Idle())
    got = scrape(metrics)
    assert got("step_age_seconds") == 0.0
    assert got("calls_total", outcome="done") == 2
    for outcome in ("failed", "out_of_memory_split", "stopped"):
        assert got("calls_total", outcome=outcome) == 1
    assert (got("rows_per_call_sum"), got("rows_per_call_count")) == (6, 2)
    assert (got("rows_per_call_bucket", le="3.0"), got("rows_per_call_bucket", le="4.0")) == (1, 2)
    assert got("step_seconds_sum") == pytest.approx(0.4 + 0.1)
    assert got("queue_wait_seconds_count") == got("encode_seconds_count") == 3
    assert got("queue_wait_seconds_sum") == pytest.approx(700.31)
    assert got("queue_wait_seconds_bucket", le="0.05") == 1
    assert got("queue_wait_seconds_bucket", le="0.5") == 2
    assert got("queue_wait_seconds_bucket", le="600.0") == 2
    assert got("generation_seconds_sum") == pytest.approx(1400.62)


def test_metrics_of_continuous_batching(metrics):
    bench = Bench()
    common = {"images": 0, "steps": 1, "seconds_per_image": None}
    first = ev.CallDone(
        requests=3, rows=6, seconds=0.2, beside_seconds=0.5, fallbacks=("random",), waits=(0.3, 4.0), **common
    )
    for call in (first, ev.CallDone(requests=1, rows=2, seconds=0.04, **common)):
        metrics.observe(call)
        bench.event(call)
    metrics.update(bench.core)
    got = scrape(metrics)
    assert (got("rows_per_call_sum"), got("rows_per_call_count")) == (8, 2)
    assert (got("step_seconds_bucket", le="0.05"), got("step_seconds_count")) == (1, 2)
    assert got("step_seconds_sum") == pytest.approx(0.24)
    assert (got("first_step_wait_seconds_bucket", le="0.5"), got("first_step_wait_seconds_count")) == (1, 2)
    assert got("fallbacks_total", reason="random") == 1
    assert got("beside_seconds_total") == 0.5
    assert got("busy_seconds_total") == pytest.approx(0.74)
    assert got("batched_requests_total") == 4


def scrape_gpu(card, config=ON_CARD):
    registry = CollectorRegistry()
    registry.register(GpuCollector(config, StandIn(card)))
    return Scrape(generate_latest(registry).decode())


def test_metrics_of_the_gpu():
    got = scrape_gpu(Card(A))
    assert got("gpu_info", worker="w", gpu="3", uuid=A, name="Card") == 1
    assert (got("gpu_memory_used_bytes"), got("gpu_memory_total_bytes")) == (2_000, 80_000)
    assert (got("gpu_utilization_ratio"), got("gpu_temperature_celsius"), got("gpu_power_watts")) == (
        0.37,
        61,
        312.5,
    )
    assert (got("gpu_clock_hertz", clock="sm"), got("gpu_clock_hertz", clock="memory")) == (1.98e9, 2.619e9)
    assert (got("gpu_throttled", reason="sw_power_cap"), got("gpu_throttled", reason="hw_slowdown")) == (1, 0)


def test_unsupported_readings_of_the_gpu_are_absent():
    card = Card(A, memory=None, utilization=None, power=None, reasons=None, clocks={})
    assert set(scrape_gpu(card).families) == {
        "imagegen_worker_gpu_info",
        "imagegen_worker_gpu_temperature_celsius",
    }
    assert set(scrape_gpu(Card("GPU-other")).families) == {"imagegen_worker_gpu_info"}
    assert scrape_gpu(Card(A), CONFIG).families == {}


def test_gpu_info_is_exported_only_for_a_worker_with_a_gpu():
    without_uuid = dataclasses.replace(ON_CARD, gpu_uuid=None)
    got = scrape(Metrics(without_uuid))
    assert got("gpu_info", uuid="", name="Card") == 1
    assert not any(name.startswith("imagegen_worker_gpu") for name in scrape(Metrics(CONFIG)).families)


def test_image_steps_and_pixels_are_counted(metrics):
    metrics.observe(ev.CallDone(requests=2, images=3, steps=20, seconds=1.0, seconds_per_image=None))  # static
    metrics.observe(ev.CallDone(requests=4, images=1, rows=8, steps=1, seconds=0.1, seconds_per_image=None))
    infos = tuple(ImageInfo(format="png", width=64, height=32, seed=seed) for seed in (1, 2))
    seconds = {"queue_seconds": 0.0, "generation_seconds": 1.0, "encode_seconds": 0.0}
    metrics.observe(ev.Finished(number=1, images=(b"", b""), infos=infos, batch_size=1, **seconds))
    got = scrape(metrics)
    assert got("image_steps_total") == 3 * 20 + 4
    assert got("pixels_total") == 2 * 64 * 32


@needs_promtool
def test_promtool_reports_no_problem(metrics):
    assert promtool("check", "metrics", text=generate_latest(metrics.registry).decode()) == (0, "")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_a_bind_to_all_addresses_is_advertised_as_the_host_name(host):
    assert advertised_address(host, 9101) == f"{socket.gethostname()}:9101"


def test_any_other_bind_address_is_advertised_unchanged():
    assert advertised_address("127.0.0.1", 9101) == "127.0.0.1:9101"
    assert advertised_address("fe80::1", 9101) == "[fe80::1]:9101"


@pytest.fixture
def fetch(metrics):
    """Start the HTTP server; return a function that returns status and text of a path."""
    port = metrics.serve("127.0.0.1", 0)

    def fetch(path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return fetch


def test_readyz_requires_a_loaded_model_a_registration_and_no_drain(metrics, fetch):
    assert fetch("/healthz") == (200, "ok\n")
    assert fetch("/readyz") == (503, "the model is not loaded yet\n")
    bench = Bench(registered=False)
    metrics.update(bench.core)
    assert fetch("/readyz") == (503, "the worker is not registered with a broker\n")
    bench.beat()
    metrics.update(bench.core)
    assert fetch("/readyz") == (200, "ok\n")
    bench.work(1)
    bench.start(1)
    bench.drain()
    metrics.update(bench.core)
    assert fetch("/readyz") == (503, "the worker is draining\n")
    assert fetch("/healthz") == (200, "ok\n")


def test_metrics_over_http(fetch):
    status, text = fetch("/metrics")
    assert status == 200
    assert Scrape(text)("brokers") == 2


def test_the_error_for_an_unknown_path_lists_the_existing_ones(fetch):
    status, text = fetch("/")
    assert status == 404
    assert "/metrics" in text


def test_a_port_in_use_is_an_error(metrics):
    port = metrics.serve("127.0.0.1", 0)
    with pytest.raises(OSError, match="in use"):
        Metrics(WorkerConfig(backend="simulated")).serve("127.0.0.1", port)


def test_model_loads_are_counted(metrics):
    bench = Bench()
    metrics.update(bench.core)
    assert scrape(metrics)("warm_models") == 1
    for event in (
        ev.ModelLoading("other", ("m", "other")),
        ev.ModelLoaded(replace(MODEL, name="other"), ("m", "other")),
        ev.ModelLoadFailed("third", "no such file", ("m", "other")),
    ):
        bench.event(event)
        metrics.observe(event)
    metrics.update(bench.core)
    got = scrape(metrics)
    assert got("warm_models") == 2
    assert (got("model_loads_total", outcome="done"), got("model_loads_total", outcome="failed")) == (1, 1)


def test_predictions_are_compared_with_what_requests_took(metrics):
    costs = CostModel(forward_seconds=0.25, megapixel_seconds=0.5, error=0.125)
    for predicted in (None, 0.9, 3.0):
        metrics.observe(ev.CostsMeasured("m", costs, 1.0, predicted))
    bench = Bench()
    bench.event(ev.CostsMeasured("m", costs, 1.0, 0.9))
    metrics.update(bench.core)
    got = scrape(metrics)
    assert got("prediction_ratio_count") == 2
    assert got("prediction_ratio_bucket", le="0.95") == 1
    assert got("prediction_error_ratio", model="m") == 0.125
    assert (got("forward_seconds", model="m"), got("forward_megapixel_seconds", model="m")) == (0.25, 0.5)
