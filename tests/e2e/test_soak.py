"""A short soak test: all of its parts run, every request ends correctly, and the report has all processes."""

import csv

import pytest
from click.testing import CliRunner

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from benchmarks.soak.__main__ import main

ROLES = {"broker", "worker", "engine", "gateway", "resident"}


# Half a minute: a busy machine takes long to start a dozen processes.
@pytest.mark.timeout(600)
def test_a_short_soak_loses_no_request(tmp_path):
    options = {
        "minutes": 0.2,
        "rate": 8,
        "sample-every": 0.5,
        "restart-every": 2,
        "visit-every": 2,
        "out": tmp_path,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "0 lost, 0 wrong" in result.output
    assert "by kill" in result.output
    assert "by terminate" in result.output
    assert "visitor: answered" in result.output
    assert "plain: answered" in result.output
    assert "bad: invalid_request" in result.output
    with (tmp_path / "samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["role"] for row in rows} >= ROLES
    assert {row["number"] for row in rows if row["name"] == "worker1"} >= {"0", "1"}, (
        "the killed process was restarted"
    )
    assert all(int(row["uss"]) > 0 and int(row["fds"]) > 0 and int(row["threads"]) > 0 for row in rows)
    assert (tmp_path / "soak.png").stat().st_size > 10_000
    assert "![Memory" in (tmp_path / "report.md").read_text()
