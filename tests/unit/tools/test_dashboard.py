"""The Grafana dashboard: the file is what the code makes, and it has what Grafana needs."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.programs import NPM_FOLDER, NPM_PACKAGES, require
from tools.dashboard.build import dashboard_json
from tools.dashboard.panels import FLEET, GATEWAY, GPU
from tools.dashboard.prometheus import Prometheus, Series
from tools.dashboard.render import in_unit, legend

GRAFANA = Path(__file__).parents[3] / "configs" / "grafana"
SHIPPED = (GRAFANA / "dashboards" / "imagegen.json").read_text()


def test_the_file_is_what_the_code_makes():
    assert dashboard_json() == SHIPPED, "python -m tools.dashboard writes it anew"


def findings(text):
    """What Grafana's published types (npm's @grafana/schema) find wrong with a dashboard; a line each."""
    require("node", NPM_PACKAGES)
    done = subprocess.run(
        ["node", NPM_FOLDER / "dashboard.mjs"], input=text, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_grafanas_own_types_take_it():
    assert findings(SHIPPED) == []


@pytest.mark.parametrize(
    ("right", "slip"),
    [('"repeat": "worker"', '"repeated": "worker"'), ('"schemaVersion": 36', '"schemaVersion": "36"')],
)
def test_slips_would_be_found(right, slip):
    assert SHIPPED.count(right) == 1
    assert findings(SHIPPED.replace(right, slip)) != []


def panels_and_those_in_closed_rows():
    panels = json.loads(SHIPPED)["panels"]
    return panels, [inner for panel in panels for inner in panel.get("panels") or ()]


def test_one_row_for_the_fleet_one_for_the_gateway_and_one_for_each_gpu():
    panels, inner = panels_and_those_in_closed_rows()
    rows = [(panel["title"], panel.get("repeat")) for panel in panels if panel["type"] == "row"]
    assert rows == [("Fleet", None), ("HTTP gateway", None), ("GPU of $worker", "worker")]
    assert len(panels) == len(rows) + len(FLEET) + len(GPU)
    assert len({panel["id"] for panel in panels + inner}) == len(panels) + len(inner)
    of_a_gpu = panels[[panel.get("repeat") for panel in panels].index("worker") + 1 :]
    assert len(of_a_gpu) == len(GPU)
    assert all('worker=~"$worker"' in target["expr"] for panel in of_a_gpu for target in panel["targets"])


def test_the_gateways_row_is_closed_and_says_what_it_is_to_have_no_data():
    """A fleet without a gateway looks whole."""
    panels, inner = panels_and_those_in_closed_rows()
    (row,) = [panel for panel in panels if panel.get("panels")]
    assert (row["title"], row["collapsed"], len(inner)) == ("HTTP gateway", True, len(GATEWAY))
    for panel in inner:
        assert panel["fieldConfig"]["defaults"]["noValue"].startswith("No gateway"), panel["title"]


def cells_of(panels):
    """The cells of Grafana's grid that are taken; no two panels lie over each other."""
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        cells = {(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])}
        assert not taken & cells, panel["title"]
        assert columns.stop <= 24
        taken |= cells
    return taken


def test_no_two_panels_lie_over_each_other_and_there_are_no_gaps():
    panels, inner = panels_and_those_in_closed_rows()
    lines = {y for _, y in cells_of(panels)}
    assert lines == set(range(max(lines) + 1))
    (row,) = [panel for panel in panels if panel.get("panels")]
    assert min(y for _, y in cells_of(inner)) == row["gridPos"]["y"] + 1


def test_every_panel_asks_the_data_source_that_is_chosen():
    panels, inner = panels_and_those_in_closed_rows()
    for panel in panels + inner:
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["targets"]


def test_grafana_counts_rates_from_the_scrape_interval_of_prometheus():
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    prometheus = yaml.safe_load((GRAFANA.parent / "prometheus" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]


def test_variables_are_filled_in():
    prometheus = Prometheus("http://nowhere", window="2m")
    assert prometheus.substitute('rate(x{w=~"$worker"}[$__rate_interval])', "gpu0") == 'rate(x{w=~"gpu0"}[2m])'
    assert prometheus.substitute('x{w=~"$worker"}', None) == 'x{w=~".+"}'


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [(0.25, "percentunit", "25%"), (0.05, "s", "50 ms"), (2e9, "bytes", "2 GB"), (61, "celsius", "61 °C"),
     (0.5, "short", "0.5"), (1500, "short", "1.5 k"), (0, "s", "0 s")],
)  # fmt: skip
def test_values_in_their_units(value, unit, expected):
    assert in_unit(value, unit) == expected


def test_legends_and_data():
    series = Series({"state": "ready"}, [1.0, 2.0], [float("nan"), 3.0])
    assert legend("{{state}} of {{nothing}}all", series) == "ready of all"
    assert series.has_data
    assert not Series({}, [1.0], [float("nan")]).has_data
