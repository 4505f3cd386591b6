"""The bytes on the way to one client are bounded, whatever it asks for and however slowly it reads."""

from typing import TYPE_CHECKING, Any

from imagegen_protocol.limits import MAX_INLINE_BYTES
from tests.simulation.speed import payload_bytes
from tests.simulation.witness import Violation

if TYPE_CHECKING:
    from tests.simulation.network import Line
    from tests.simulation.world import World


def bounded_output(world: "World", line: "Line") -> None:
    """Judge the CHUNKs that a client has not read."""
    window = world.plan.fetch_window_bytes
    if line.dialer.is_client and line.chunk_bytes > window:
        text = f"{line.chunk_bytes} bytes of chunks are on the way to {line.dialer.name}, the window is {window}"
        raise Violation("bounded_output", text)


def small_inline(world: "World", result: Any, frames: Any) -> None:
    """Judge a RESULT: what is not fetched is small."""
    if (size := payload_bytes(frames)) > MAX_INLINE_BYTES:
        text = f"a RESULT has {size} bytes inline, at most {MAX_INLINE_BYTES} are allowed"
        raise Violation("bounded_output", text, world.witness.key_of.get(result.request_id))
