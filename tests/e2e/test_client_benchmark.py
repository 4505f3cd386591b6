"""The benchmark of the client: its report is complete. Speeds are not judged."""

import json

import pytest
from click.testing import CliRunner

pytest.importorskip("hdrh")
pytest.importorskip("matplotlib")

from benchmarks.client import __main__ as benchmark
from benchmarks.client.__main__ import Size

SMALL = Size(1, {1: 30, 64: 100}, 100, 3, 0.2)


def test_every_variant_is_in_the_report(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "QUICK", SMALL)
    result = CliRunner().invoke(benchmark.main, ["--quick", "--out", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "client.json").read_text())
    for window in ("1", "64"):
        ways = figures["exchange"][window]
        assert set(ways) == {"bare socket", "Client", "AsyncClient"}
        assert ways["bare socket"]["cpu_ratio"] == 1.0
        assert all(way["cpu"] > 0 and way["rate"] > 0 for way in ways.values())
    assert figures["exchange"]["1"]["Client"]["latency"]["count"] == 30
    for mapped in figures["map"].values():
        assert mapped["memory"][-1][0] == 100
        assert mapped["peak"] >= mapped["start"] > 0
    for crowd in figures["processes"].values():
        assert crowd["processes"] == 3
        assert 0 < crowd["least"] <= crowd["most"] <= crowd["requests"]
    report = (tmp_path / "report.md").read_text()
    assert "commit" in report
    assert (tmp_path / "client.png").exists()
