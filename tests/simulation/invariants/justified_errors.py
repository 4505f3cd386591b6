"""A request ends in an error only if this error is justified."""

from typing import TYPE_CHECKING

from imagegen_protocol import ImagegenError
from imagegen_protocol.limits import MIN_CHUNK_BYTES
from tests.simulation.fleet_record import SILENCE, Submission, Violation

if TYPE_CHECKING:
    from tests.simulation.world import World

MAX_ATTEMPTS = 3
CLOCK_RATIO = 0.97 / 1.03
"""Ratio of the slowest to the fastest clock."""


def justified_errors(world: "World", submission: Submission, error: ImagegenError) -> None:
    """Check an error."""
    if not _has_reason(world, submission, error):
        raise Violation(
            "justified_errors", f"{submission.key.hex()} ended unjustified in {error!r}", submission.key
        )


def _has_reason(world: "World", submission: Submission, error: ImagegenError) -> bool:
    plan = world.plan
    match error.code:
        case "cancelled":
            return submission.cancelled
        case "deadline_exceeded" | "broker_unreachable":
            return (
                submission.timeout is not None
                and submission.client.local() - submission.at >= submission.timeout * CLOCK_RATIO - 0.05
            )
        case "poison_request":
            # The last attempt ran alone: without faults, only a poison request itself gets this error.
            if submission.prompt != "poison" and not plan.faults:
                return False
            failures = sum(
                world.record.failures[worker.id] for worker in {w.id: w for w in submission.started_by}.values()
            )
            return failures >= MAX_ATTEMPTS
        case "out_of_memory":
            return submission.prompt == "big"
        case "generation_failed":
            # A worker with a low limit drops answers that a client has not acknowledged or is still fetching, or
            # that did not reach the client because its connection was full.
            is_slow = submission.client.no_acks_until > 0 or submission.client.slow_until > 0
            is_held = is_slow or submission.images * submission.image_bytes > MIN_CHUNK_BYTES
            was_returned = "answer_lost" in error.message and is_held and plan.held_count < 100
            return submission.prompt == "bad" or was_returned
        case "overloaded":
            return (
                min(plan.max_requests, plan.max_requests_per_client, plan.max_bytes, plan.max_bytes_per_client)
                < 1000
            )
        case "model_not_found":
            return submission.model == "n" and _was_absent(world, submission)
        case "client_closed":
            return True
    return False


def _was_absent(world: "World", submission: Submission) -> bool:
    """Return whether the only worker with model `n` was absent or unreachable when the broker started."""
    worker, since = world.workers[0], world.now - SILENCE
    return (
        worker is None
        or not worker.alive
        or worker.started >= since
        or max(worker.last_fault, submission.client.last_fault) >= since
        or world.record.any_link_had_fault(worker.name, since)
        or world.record.any_link_had_fault(submission.client.name, since)
    )
