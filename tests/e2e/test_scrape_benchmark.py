"""The benchmark of scrapes: its report is complete. Speeds are not judged."""

from click.testing import CliRunner

from benchmarks.scrape import main


def test_the_report_has_the_loop_and_the_requests():
    options = ["--workers", "4", "--waiting", "20", "--requests", "30", "--scrapes", "50"]
    result = CliRunner().invoke(main, options, catch_exceptions=False)
    assert result.exit_code == 0
    assert "4 workers and 20 requests" in result.output
    assert result.output.count("median") == 4
