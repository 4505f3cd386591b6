"""Waiting for a condition, with a limit."""

import time

PAUSE_SECONDS = 0.05
"""Seconds between two checks of the condition."""


def wait_until(condition, description, timeout=180.0):
    """Call `condition` until it returns a true value, and return that.

    Raises AssertionError with the description if it does not within `timeout` seconds.
    """
    end = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < end, f"{description}: not within {timeout:.0f} s"
        time.sleep(PAUSE_SECONDS)
    return found
