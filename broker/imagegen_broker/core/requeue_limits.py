"""Limits on how often a request may be requeued before it ends in an error, by reason.

Requests that were running when their worker died are not counted here: they lead to `poison_request`.
"""

from collections.abc import Mapping
from typing import NamedTuple


class RequeueLimit(NamedTuple):
    """The maximum number of requeues for several reasons together."""

    reasons: tuple[str, ...]
    maximum: int


REQUEUE_LIMITS = (
    # The worker returned the request before it started, or could not be reached. No work is lost. Rolling restarts
    # of a fleet cause these, so the limit is high.
    RequeueLimit(("returned", "worker_left", "unreachable"), 100),
    # The worker has a new connection and keeps its requests. A flapping link replaces a connection each second.
    RequeueLimit(("worker_reconnected",), 1_000),
    # The worker died or hung before the request started, or does not list it. Some work may be lost.
    RequeueLimit(("lost", "worker_lost", "worker_stuck"), 20),
    # The images were generated, and lost before the client acknowledged them. All the work is lost.
    RequeueLimit(("answer_lost",), 5),
)


def exceeded(requeues: Mapping[str, int]) -> str | None:
    """Return an error text if a request was requeued too often, given its requeues by reason; else None."""
    for reasons, maximum in REQUEUE_LIMITS:
        if sum(requeues.get(reason, 0) for reason in reasons) > maximum:
            counts = ", ".join(f"{reason} {count}" for reason, count in requeues.items())
            return f"the request was requeued too often ({counts}); {maximum} times are allowed"
    return None
