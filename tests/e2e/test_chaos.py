"""A short chaos test: processes are killed and frozen under load. `python -m tools.chaos` runs longer ones."""

from tools import chaos

SECONDS = 40.0


def test_no_request_is_lost_under_faults(tmp_path):
    report = chaos.run(5, SECONDS, tmp_path)
    assert report.good, report.as_dict()
    assert report.sent > len(report.faults), "requests were answered during the faults"
    assert len(report.faults) >= 3, "the faults of the seed were injected"
    # Only requests at a faulty worker are generated again: for each fault, at most the capacity of the workers.
    struck = report.faults["kill worker"] + report.faults["freeze worker"] + report.faults["freeze broker"]
    assert report.made_again <= 16 * chaos.WORKERS * max(1, struck)
