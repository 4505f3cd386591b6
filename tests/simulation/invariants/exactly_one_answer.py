"""Each request of a live client ends exactly once."""

from typing import TYPE_CHECKING, Any

from tests.simulation.fleet_record import Submission, Violation

if TYPE_CHECKING:
    from tests.simulation.clients import ClientPeer
    from tests.simulation.world import World


def exactly_one_answer(world: "World", client: "ClientPeer", key: bytes, outcome: Any) -> Submission:
    """Check that this is the first answer to the request, at the right client."""
    submission = world.record.submissions.get(key)
    if submission is None or submission.client is not client:
        raise Violation("exactly_one_answer", f"{client.name} got an answer to a request that is not its own", key)
    submission.outcomes.append(outcome)
    if world.recording:
        what = f"images of {[*map(len, outcome)]} bytes" if isinstance(outcome, tuple) else repr(outcome)
        world.log(f"{client.name} receives the outcome of {key.hex()}: {what}", key)
    if len(submission.outcomes) > 1:
        raise Violation(
            "exactly_one_answer", f"{key.hex()} ended {len(submission.outcomes)} times: {submission.outcomes}", key
        )
    world.record.unfinished.pop(key, None)
    return submission


def unanswered(world: "World") -> None:
    """Check that every request of a live client has ended."""
    for key, submission in world.record.unfinished.items():
        raise Violation("exactly_one_answer", f"{key.hex()} of {submission.client.name} never ended", key)
