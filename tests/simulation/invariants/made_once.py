"""No image is generated twice without a fault as an excuse."""

from typing import TYPE_CHECKING

from tests.simulation.witness import SILENCE, Violation

if TYPE_CHECKING:
    from tests.simulation.workers import WorkerPeer
    from tests.simulation.world import World


def made_once(world: "World", worker: "WorkerPeer", request_id: bytes) -> None:
    """Check an image that a worker has just generated.

    If the request has another one, then one of these must have happened since its first start (less one
    liveness time): an earlier worker died, or dropped the answer because the plan lets it hold few; a worker froze
    or hung; a link of a worker or of the client had a fault; a broker or the client froze. Images of two ids are
    excused, too: a broker rejected the request, so that its client gave it another id, although a late copy of the
    message was accepted, or a broker that was killed since the client asked had accepted it before. A broker's
    crash or a drain alone is no excuse.
    """
    witness = world.witness
    ask = witness.ask_of(request_id)
    if ask is None:
        return
    makers, is_new_id = ask.makers, request_id not in ask.made_ids
    makers.append(worker)
    ask.made_ids.append(request_id)
    if len(makers) == 1:
        return
    witness.made_twice += 1
    since = ask.first_begun - SILENCE
    slept = any(peer.trouble >= since for peer in (*makers, ask.client, *world.brokers) if peer is not None)
    died = any(not maker.alive for maker in makers)
    evicted = world.plan.held_count < 100 and request_id in witness.evicted
    renamed = is_new_id and (world.plan.duplicates > 0 or witness.broker_died >= ask.asked_at)
    names = [*(maker.name for maker in makers), ask.client.name]
    if not (slept or died or evicted or renamed or any(witness.any_link_troubled(name, since) for name in names)):
        text = f"{request_id.hex()} was made by {', '.join(maker.name for maker in makers)}"
        raise Violation("made_once", text, ask.key)
