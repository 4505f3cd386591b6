"""A reported queue position is within its bounds: not before requests that surely precede, not behind all."""

from typing import TYPE_CHECKING

from imagegen_broker.core.records import State
from imagegen_protocol.messages import Progress
from tests.simulation.fleet_record import Violation

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer


def correct_positions(broker: "BrokerPeer", progress: Progress) -> None:
    """Check a PROGRESS before it is sent; `tests/property` compares whole orders."""
    core = broker.core
    request = core.table.requests.get(progress.request_id)
    if request is None or request.state is not State.QUEUED or not request.progress:
        raise Violation("correct_positions", f"{progress.request_id.hex()} is sent a position but is not queued")
    others = [r for r in core.table.requests.values() if r.state is State.QUEUED and r.model == request.model]
    first = sum(
        other.priority > request.priority
        or (other.priority == request.priority and other.requeued and not request.requeued)
        for other in others
        if not core.scheduler.queue.is_paused(other.client.id)
    )
    if progress.place is None or not first <= progress.place < len(others):
        text = (
            f"{request.id.hex()} is sent position {progress.place}; {first} of {len(others)} certainly precede it"
        )
        raise Violation("correct_positions", text, request.id)
