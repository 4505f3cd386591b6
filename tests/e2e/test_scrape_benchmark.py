"""The benchmark of scrapes runs to its end, and tells what it should; never how fast."""

from click.testing import CliRunner

from benchmarks.scrape import main


def test_it_tells_of_the_loop_and_of_requests():
    options = ["--workers", "4", "--waiting", "20", "--requests", "30", "--scrapes", "50"]
    result = CliRunner().invoke(main, options, catch_exceptions=False)
    assert result.exit_code == 0
    assert "4 workers and 20 requests" in result.output
    assert result.output.count("median") == 4
