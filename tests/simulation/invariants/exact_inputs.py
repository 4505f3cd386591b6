"""A worker starts a request with exactly the input images that its client sent."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tests.simulation.fleet_record import Violation

if TYPE_CHECKING:
    from tests.simulation.workers import WorkerPeer
    from tests.simulation.world import World


def exact_inputs(world: "World", worker: "WorkerPeer", request_id: bytes, inputs: Sequence[Any]) -> None:
    """Compare the frames that a worker decodes with those that the client sent."""
    submission = world.record.submission_of(request_id)
    if submission is not None and tuple(map(bytes, inputs)) != submission.inputs:
        sizes, sent = [len(each) for each in inputs], [len(each) for each in submission.inputs]
        text = f"{worker.name} has inputs of {sizes} bytes for {request_id.hex()}; the client sent {sent}"
        raise Violation("exact_inputs", text, submission.key)
