"""The bytes in transit to one client are bounded, whatever it requests and however slowly it reads."""

from typing import TYPE_CHECKING, Any

from imagegen_protocol.limits import MAX_INLINE_BYTES, MIN_CHUNK_BYTES
from imagegen_protocol.transfers import INITIAL_WINDOW_BYTES
from tests.simulation.fleet_record import INTERVAL, SILENCE, Violation
from tests.simulation.speed import payload_bytes

if TYPE_CHECKING:
    from tests.simulation.network import Link
    from tests.simulation.world import World

RETRIED_BYTES = 5 * MIN_CHUNK_BYTES
"""Bytes that a client may request again while the first copy is still in transit, and the last piece of its
window, which may exceed what the link transfers in two intervals."""


def bounded_output(world: "World", link: "Link") -> None:
    """Check the bytes of CHUNKs that a client has not read."""
    window = _limit(world, link)
    if link.dialer.is_client and link.chunk_bytes > window:
        text = f"{link.chunk_bytes} bytes of chunks are in transit to {link.dialer.name}, the window is {window}"
        raise Violation("bounded_output", text)


def _limit(world: "World", link: "Link") -> float:
    """Return the maximum: on a slow healthy link, other messages wait for at most two intervals."""
    window, since = world.plan.fetch_window_bytes, world.now - SILENCE
    if link.dialer.last_fault >= since or world.record.link_had_fault(link.dialer.name, link.name, since):
        return window
    return min(window, max(INITIAL_WINDOW_BYTES, 2 * INTERVAL * link.speed.down) + RETRIED_BYTES)


def small_inline(world: "World", result: Any, frames: Any) -> None:
    """Check that the inline payload of a RESULT is small."""
    if (size := payload_bytes(frames)) > MAX_INLINE_BYTES:
        text = f"a RESULT has {size} bytes inline, at most {MAX_INLINE_BYTES} are allowed"
        raise Violation("bounded_output", text, world.record.key_of.get(result.request_id))
