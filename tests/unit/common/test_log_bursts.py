"""Warnings that peers cause in a loop are limited for each text, and the lines that are left out are counted."""

import logging

from imagegen_common.logs import BURST_LINES, BurstLimiter


def warnings(limiter, now, count, text="key rejected"):
    return limiter.limit([(logging.WARNING, text, {"n": n}) for n in range(count)], now)


def test_a_burst_is_cut_and_the_next_line_says_by_how_much():
    limiter = BurstLimiter()
    assert len(warnings(limiter, 5.0, BURST_LINES + 7)) == BURST_LINES
    assert warnings(limiter, 5.9, 1) == []
    assert warnings(limiter, 6.0, 1) == [(logging.WARNING, "key rejected", {"n": 0, "left_out": 8})]
    assert warnings(limiter, 7.0, 1) == [(logging.WARNING, "key rejected", {"n": 0})]


def test_other_texts_and_lower_levels_are_not_affected():
    limiter = BurstLimiter()
    warnings(limiter, 5.0, 1000)
    assert len(warnings(limiter, 5.0, 3, text="worker lost")) == 3
    assert len(limiter.limit([(logging.INFO, "key rejected", {})] * 1000, 5.0)) == 1000


def test_the_number_of_texts_is_bounded():
    limiter = BurstLimiter()
    for number in range(5000):
        warnings(limiter, 5.0, 1, text=f"text {number}")
    assert len(limiter._seconds) <= 1000
