"""The benchmark of the broker."""

import json

from click.testing import CliRunner

from benchmarks.broker import __main__ as benchmark


def test_every_contender_answers_and_is_in_the_report(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "SIZES", (100_000,))
    result = CliRunner().invoke(
        benchmark.main, ["--quick", "--seconds", "0.1", "--out", str(tmp_path)], catch_exceptions=False
    )
    assert result.exit_code == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    through = {"proxy", "bare", "imagegen"}
    for table, names in ((figures["small"], through | {"direct"}), (figures["large"], through)):
        for by in table.values():
            assert set(by) == names
            assert all(point["p50"] > 0 and point["cpu"] >= 0 for point in by.values())
    report = (tmp_path / "report.md").read_text()
    assert report.count("| imagegen |") == 7
    assert "| sockets |" in report
    assert (tmp_path / "broker.png").stat().st_size > 10_000
