"""What is said of metrics agrees with what is exported: in the documentation, the rules and the dashboard."""

import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from imagegen_broker.metrics import BrokerCollector
from imagegen_broker.server import Snapshot
from imagegen_gateway.metrics import Metrics as GatewayMetrics
from imagegen_worker.config import WorkerConfig
from imagegen_worker.telemetry.gpu_metrics import GpuCollector
from imagegen_worker.telemetry.metrics import Metrics
from tests.unit.broker.bench import Bench
from tests.unit.observe.test_prometheus import FOLDER, RULES, alerts
from tests.unit.worker.devices.standin import A, Card, StandIn
from tools.dashboard.panels import FLEET, GATEWAY, GPU

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs" / "metrics.md").read_text()
ON_CARD = WorkerConfig(backend="simulated", gpu_uuid=A, gpu_name="Card")


def families():
    """All metrics that there are, by the name of the family."""
    registry = CollectorRegistry(auto_describe=False)
    bench = Bench().past_grace()
    bench.ready("w")
    bench.beat("w", seconds_per_image=1.0)
    registry.register(BrokerCollector(Snapshot.of(bench.core, bench.now)))
    registry.register(GpuCollector(ON_CARD, StandIn(Card(A))))
    text = generate_latest(registry) + generate_latest(Metrics(WorkerConfig(backend="simulated")).registry)
    text += generate_latest(GatewayMetrics().registry)
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def exported():
    """The names by which the metrics are asked for."""
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return {name + suffix for name, family in families().items() for suffix in suffixes.get(family.type, ("",))}


def named(text):
    return set(re.findall(r"\bimagegen_(?:broker|gateway|worker)_\w+", text))


def test_every_metric_is_documented_and_no_other():
    counted = {name + "_total" if family.type == "counter" else name for name, family in families().items()}
    assert named(DOCS) - {"imagegen_broker_", "imagegen_gateway_", "imagegen_worker_"} == counted


def test_every_alert_and_recorded_series_is_documented_and_no_other():
    assert set(re.findall(r"^### (\w+)$", DOCS, re.MULTILINE)) == {rule["alert"] for rule in alerts()}
    recorded = {
        rule["record"]
        for path in RULES
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
        if "record" in rule
    }
    assert set(re.findall(r"`((?:\w+:)?imagegen\w*:\w+(?::\w+)?)`", DOCS)) == recorded


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.yml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_rules_and_their_tests_name_metrics_that_exist(path):
    assert named(path.read_text()) <= exported()


def test_the_dashboard_names_metrics_that_exist_and_leaves_few_out():
    shown = {name for panel in FLEET + GATEWAY + GPU for query in panel.queries for name in named(query.expr)}
    assert shown <= exported()
    assert len(shown) > 40
    of_the_gateway = {name for name in exported() if name.startswith("imagegen_gateway_")}
    assert {name for name in of_the_gateway - shown if not name.endswith(("_sum", "_count"))} == {
        "imagegen_gateway_build_info"
    }
