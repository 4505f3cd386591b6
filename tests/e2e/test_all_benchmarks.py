"""The command that runs all benchmarks and writes one report, even if some fail or are missing."""

import pytest
from click.testing import CliRunner

from benchmarks import __main__ as umbrella
from benchmarks.__main__ import BY_NAME, ROOMS, Room


def test_each_benchmark_is_listed_once():
    assert len(BY_NAME) == len(ROOMS)


def test_a_failed_or_missing_benchmark_does_not_stop_the_others(tmp_path, monkeypatch):
    rooms = {
        "broken": Room("broken", "ends badly", "benchmarks.scrape", ("--no-such-option",), ()),
        "absent": Room("absent", "is not here", "benchmarks.no_such_module"),
        "scrape": BY_NAME["scrape"],
    }
    monkeypatch.setattr(umbrella, "BY_NAME", rooms)
    monkeypatch.setattr(umbrella, "ROOMS", tuple(rooms.values()))
    result = CliRunner().invoke(umbrella.main, ["--quick", "--out", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 1
    assert "failed: broken" in result.output
    report = (tmp_path / "report.md").read_text()
    assert "commit" in report.splitlines()[2]
    assert "| broken: **failed** (2) |" in report
    assert "| absent: not here |" in report
    assert "4 workers and 20 requests" in report, "its output is its report"
    assert (tmp_path / "scrape" / "output.txt").exists()


def test_an_unknown_name_is_rejected():
    result = CliRunner().invoke(umbrella.main, ["no-such"])
    assert result.exit_code == 2


@pytest.mark.parametrize("line", ["# Title", "![A picture](client.png)", "## Part"])
def test_headings_of_a_report_are_lowered_in_the_combined_one(line):
    [*shown] = umbrella._below(line, "client")
    assert (
        shown
        == {
            "# Title": [],
            "![A picture](client.png)": ["![A picture](client/client.png)"],
            "## Part": ["### Part"],
        }[line]
    )
