"""A request ends in an error only if there is a reason for this error."""

from typing import TYPE_CHECKING

from imagegen_protocol import ImagegenError
from imagegen_protocol.limits import MIN_CHUNK_BYTES
from tests.simulation.witness import SILENCE, Ask, Violation

if TYPE_CHECKING:
    from tests.simulation.world import World

MAX_ATTEMPTS = 3
CLOCKS = 0.97 / 1.03
"""Ratio of the slowest to the fastest clock."""


def reasoned_errors(world: "World", ask: Ask, error: ImagegenError) -> None:
    """Check an error."""
    if not _has_reason(world, ask, error):
        raise Violation("reasoned_errors", f"{ask.key.hex()} ended without a reason in {error!r}", ask.key)


def _has_reason(world: "World", ask: Ask, error: ImagegenError) -> bool:
    plan = world.plan
    match error.code:
        case "cancelled":
            return ask.cancelled
        case "deadline_exceeded" | "broker_unreachable":
            return ask.timeout is not None and ask.client.local() - ask.at >= ask.timeout * CLOCKS - 0.05
        case "poison_request":
            # The last attempt ran alone: without faults, only a poison request itself gets this error.
            if ask.prompt != "poison" and not plan.faults:
                return False
            downs = sum(world.witness.downs[worker.id] for worker in {w.id: w for w in ask.begun}.values())
            return downs >= MAX_ATTEMPTS
        case "out_of_memory":
            return ask.prompt == "big"
        case "generation_failed":
            # A worker with a low limit drops answers that a client has not acknowledged or is still fetching, or
            # that did not reach the client because its connection was full.
            is_slow = ask.client.mute_until > 0 or ask.client.slow_until > 0
            is_held = is_slow or ask.images * ask.image_bytes > MIN_CHUNK_BYTES
            came_back = "answer_lost" in error.message and is_held and plan.held_count < 100
            return ask.prompt == "bad" or came_back
        case "overloaded":
            return (
                min(plan.max_requests, plan.max_requests_per_client, plan.max_bytes, plan.max_bytes_per_client)
                < 1000
            )
        case "model_not_found":
            return ask.model == "n" and _was_away(world, ask)
        case "client_closed":
            return True
    return False


def _was_away(world: "World", ask: Ask) -> bool:
    """Return whether the only worker with model `n` was absent or unreachable when the broker started."""
    worker, since = world.workers[0], world.now - SILENCE
    return (
        worker is None
        or not worker.alive
        or worker.started >= since
        or max(worker.trouble, ask.client.trouble) >= since
        or world.witness.any_link_troubled(worker.name, since)
        or world.witness.any_link_troubled(ask.client.name, since)
    )
