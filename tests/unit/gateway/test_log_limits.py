"""Limits on repeated log lines."""

import logging

import pytest
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException

from imagegen_gateway import log_limits
from imagegen_gateway.bodies import _parse_form
from imagegen_gateway.log_limits import INTERVAL_SECONDS, LINES, RepetitionFilter, limit_log_lines


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(log_limits, "time", clock)
    return clock


def record(text, error=None):
    information = None if error is None else (type(error), error, None)
    return logging.LogRecord("x", logging.WARNING, __file__, 0, text, (), information)


def test_repeated_lines_are_omitted_and_counted(clock):
    limit = RepetitionFilter()
    assert [limit.filter(record("a")) for _ in range(1000)].count(True) == LINES
    assert limit.filter(record("b"))
    assert limit.filter(record("a", ValueError("x"))), "another exception is another line"
    clock.now = INTERVAL_SECONDS
    later = record("a")
    assert limit.filter(later)
    assert later.fields == {"omitted_before": 1000 - LINES}


def test_the_number_of_different_lines_is_bounded(clock):
    limit = RepetitionFilter()
    for number in range(5000):
        assert limit.filter(record(f"{number}" + "x" * 10_000))
    assert len(limit._texts) <= 1000
    assert max(map(len, limit._texts)) < 300


def test_lines_about_malformed_forms_are_limited(caplog):
    parser = logging.getLogger("python_multipart.multipart")
    filters = parser.filters[:]
    limit_log_lines()
    try:
        for _ in range(100):
            with pytest.raises(MultiPartException):
                _parse_form(Headers({"content-type": "multipart/form-data; boundary=b"}), b"--x")
    finally:
        parser.filters[:] = filters
    assert 1 <= len(caplog.records) <= LINES
