"""Each request of a live client ends exactly once."""

from typing import TYPE_CHECKING, Any

from tests.simulation.witness import Ask, Violation

if TYPE_CHECKING:
    from tests.simulation.clients import ClientPeer
    from tests.simulation.world import World


def one_answer(world: "World", client: "ClientPeer", key: bytes, outcome: Any) -> Ask:
    """Check that this is the first answer to the request, at the right client."""
    ask = world.witness.asks.get(key)
    if ask is None or ask.client is not client:
        raise Violation("one_answer", f"{client.name} got an answer to a request that is not its own", key)
    ask.ends.append(outcome)
    if world.recording:
        what = f"images of {[*map(len, outcome)]} bytes" if isinstance(outcome, tuple) else repr(outcome)
        world.tell(f"{client.name} has the end of {key.hex()}: {what}", key)
    if len(ask.ends) > 1:
        raise Violation("one_answer", f"{key.hex()} ended {len(ask.ends)} times: {ask.ends}", key)
    world.witness.open.pop(key, None)
    return ask


def unanswered(world: "World") -> None:
    """Check that every request of a live client has ended."""
    for key, ask in world.witness.open.items():
        raise Violation("one_answer", f"{key.hex()} of {ask.client.name} never ended", key)
