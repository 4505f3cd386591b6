"""How often a request may come back to the queue before it ends in an error: a bound for every reason.

Deaths of workers that were running the request are not counted here: they lead to `poison_request`.
"""

from collections.abc import Mapping
from typing import NamedTuple


class _Bound(NamedTuple):
    """The most times that a request may come back, for these reasons together."""

    reasons: tuple[str, ...]
    most: int


BOUNDS = (
    # The worker gave it back before it began, or could not be reached. It costs no work, and rolling restarts of
    # a fleet do it: the bound is only there to end it.
    _Bound(("returned", "worker_left", "unreachable"), 100),
    # The worker died or hung before it began, or does not list what it was sent. It may have cost some work.
    _Bound(("lost", "worker_lost", "worker_stuck"), 20),
    # It was made, and its answer was gone before the client acknowledged it. It cost all the work.
    _Bound(("answer_lost",), 5),
)


def exhausted(returns: Mapping[str, int]) -> str | None:
    """Return why a request must not be tried again, in words; None while it may be.

    `returns` holds how often it came back, by reason.
    """
    for reasons, most in BOUNDS:
        if sum(returns.get(reason, 0) for reason in reasons) > most:
            counts = ", ".join(f"{reason} {count}" for reason, count in returns.items())
            return f"the request came back from workers too often ({counts}); {most} times are allowed"
    return None
