"""A worker drops an answer because of its age only if a fault delayed the acknowledgement."""

from typing import TYPE_CHECKING

from tests.simulation.witness import SILENCE, Violation

if TYPE_CHECKING:
    from tests.simulation.workers import WorkerPeer
    from tests.simulation.world import World


def no_answer_grows_old(world: "World", worker: "WorkerPeer", request_id: bytes, age: float) -> None:
    """Check an answer that was dropped at an age.

    One of these must have happened since its generation (less one liveness time): a broker was killed or froze,
    and lost the acknowledgement; the worker or the client froze; a link of either had a fault; the client is gone.
    """
    witness = world.witness
    since = world.now - age - SILENCE
    ask = witness.ask_of(request_id)
    peers = [worker, *(broker for broker in world.brokers if broker is not None)]
    peers += [ask.client] if ask is not None else []
    excused = (
        witness.broker_died >= since
        or any(not peer.alive or peer.trouble >= since for peer in peers)
        or any(witness.any_link_troubled(peer.name, since) for peer in peers)
    )
    if not excused:
        text = f"{worker.name} held the answer to {request_id.hex()} for {age:.0f} s, and nobody released it"
        raise Violation("no_answer_grows_old", text, ask.key if ask else None)
