"""Grafana's JSON for the panels of `panels.py`."""

import json
from collections.abc import Callable
from string import ascii_uppercase
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    VariableOption,
    VariableRefresh,
)

from tools.dashboard.panels import FLEET, GATEWAY, GPU, Panel

_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_COLUMNS = 24
"""Columns of Grafana's grid."""
_NOT_OF_VARIABLES = ("auto", "auto_count", "auto_min", "id")
_PANEL_WIDTH, _PANEL_HEIGHT, _STAT_HEIGHT = 8, 7, 4


def dashboard_json() -> str:
    """Return the dashboard as JSON for Grafana's import; the text is deterministic."""
    board = (
        dashboard.Dashboard("imagegen")
        .uid("imagegen-fleet")
        .description("A fleet of GPU workers behind a broker. Made by tools/dashboard; changes belong there.")
        .tags(["imagegen"])
        .time("now-1h", "now")
        .refresh("10s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable("worker")
            .label("GPU")
            .datasource(_SOURCE)
            .query("label_values(imagegen_worker_warm, worker)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
            .current(VariableOption(selected=True, text="All", value="$__all"))
        )
        .annotations([])
        .with_row(dashboard.Row("Fleet").id(1))
    )
    for number, panel in enumerate(FLEET, start=100):
        board = board.with_panel(_panel(panel, number, stats=sum(one.kind == "stat" for one in FLEET)))
    gateway = dashboard.Row("HTTP gateway").id(3)
    for number, panel in enumerate(GATEWAY, start=300):
        gateway = gateway.with_panel(_panel(panel, number))  # panels in a row make it collapsed
    board = board.with_row(gateway)
    board = board.with_row(dashboard.Row("GPU of $worker").id(2).repeat("worker"))
    for number, panel in enumerate(GPU, start=200):
        board = board.with_panel(_panel(panel, number))
    made = json.loads(JSONEncoder().encode(board.build()))
    _close_gaps(made["panels"])
    made.pop("style", None)  # a field of Grafana 10 only
    for variable in made["templating"]["list"]:
        for name in _NOT_OF_VARIABLES:  # the library writes them, but Grafana's schema has no such fields
            variable.pop(name, None)
    return json.dumps(made, sort_keys=True, indent=2) + "\n"


def _close_gaps(panels: list[dict[str, Any]]) -> None:
    """Move up the panels below a collapsed row, which the library places as if it were expanded."""
    gap = 0
    for panel in panels:
        panel["gridPos"]["y"] -= gap
        if panel.get("collapsed"):
            bottom = max(inner["gridPos"]["y"] + inner["gridPos"]["h"] for inner in panel["panels"])
            gap += bottom - panel["gridPos"]["y"] - panel["gridPos"]["h"]


def _panel(panel: Panel, number: int, stats: int = 1) -> stat.Panel | timeseries.Panel:
    make: Callable[[Panel], stat.Panel | timeseries.Panel] = _stat if panel.kind == "stat" else _series
    built = make(panel).id(number).title(panel.title).unit(panel.unit).datasource(_SOURCE).min(0)
    built = built.span(_COLUMNS // stats if panel.kind == "stat" else _PANEL_WIDTH)
    built = built.height(_STAT_HEIGHT if panel.kind == "stat" else _PANEL_HEIGHT)
    if panel.text:
        built = built.description(panel.text)
    if panel.empty:
        built = built.no_value(panel.empty)
    for letter, query in zip(ascii_uppercase, panel.queries, strict=False):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(letter)
        built = built.with_target(target)
    return built


def _stat(panel: Panel) -> stat.Panel:
    return (
        stat.Panel()
        .graph_mode(BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def _series(panel: Panel) -> timeseries.Panel:
    built = (
        timeseries.Panel()
        .fill_opacity(25 if panel.stacked else 8)
        .show_points(VisibilityMode.NEVER)
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
    )
    return built.stacking(common.StackingConfig().mode(StackingMode.NORMAL)) if panel.stacked else built
