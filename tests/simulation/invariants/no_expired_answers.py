"""A worker drops an answer because of its age only if a fault delayed the acknowledgement."""

from typing import TYPE_CHECKING

from tests.simulation.fleet_record import SILENCE, Violation

if TYPE_CHECKING:
    from tests.simulation.workers import WorkerPeer
    from tests.simulation.world import World


def no_expired_answers(world: "World", worker: "WorkerPeer", request_id: bytes, age: float) -> None:
    """Check an answer that was dropped at an age.

    One of these must have happened since its generation (less one liveness time): a broker was killed or froze,
    and lost the acknowledgement; the worker or the client froze; a link of either had a fault; the client is gone.
    """
    record = world.record
    since = world.now - age - SILENCE
    submission = record.submission_of(request_id)
    peers = [worker, *(broker for broker in world.brokers if broker is not None)]
    peers += [submission.client] if submission is not None else []
    excused = (
        record.last_broker_kill >= since
        or any(not peer.alive or peer.last_fault >= since for peer in peers)
        or any(record.any_link_had_fault(peer.name, since) for peer in peers)
    )
    if not excused:
        text = f"{worker.name} held the answer to {request_id.hex()} for {age:.0f} s, because it was not released"
        raise Violation("no_expired_answers", text, submission.key if submission else None)
