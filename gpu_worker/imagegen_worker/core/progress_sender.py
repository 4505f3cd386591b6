"""Sending of progress and previews of running requests, limited by the speed of the links to the brokers."""

from imagegen_protocol.limits import MAX_PREVIEW_BYTES
from imagegen_protocol.messages import Progress
from imagegen_worker.core.broker_session import BrokerSessions
from imagegen_worker.core.held_requests import HeldRequest, HeldRequests

MAX_PREVIEW_INTERVAL_SECONDS = 1.0
"""Maximum time in which the previews for one broker have at most `MAX_PREVIEW_BYTES`; a shorter heartbeat interval
counts instead."""


class ProgressSender:
    """Sends PROGRESS to the brokers that want it."""

    def __init__(self, held: HeldRequests, brokers: BrokerSessions) -> None:
        self._held = held
        self._brokers = brokers

    def send(self, held: HeldRequest, step: int, steps: int, now: float) -> None:
        """Report the steps of a request."""
        held.step = (step, steps)
        self._send(held, (), now)

    def send_preview(self, held: HeldRequest, image: bytes, now: float) -> None:
        """Send a preview with the last reported step, unless it is too large or the one before is too recent.

        The requests of a broker that have previews share the permitted bytes.
        """
        if not held.preview or len(image) > MAX_PREVIEW_BYTES or now < held.next_preview_at:
            return
        sharing = sum(other.preview and other.broker == held.broker for other in self._held.running.values())
        interval = min(self._brokers[held.broker].interval, MAX_PREVIEW_INTERVAL_SECONDS)
        held.next_preview_at = now + interval * max(sharing, 1) * len(image) / MAX_PREVIEW_BYTES
        self._send(held, (image,), now)

    def _send(self, held: HeldRequest, frames: tuple[bytes, ...], now: float) -> None:
        """Send progress, unless the link to the broker is congested."""
        session = self._brokers[held.broker]
        if held.progress and session.registered and not session.is_congested(now):
            step, steps = held.step
            progress = Progress(request_id=held.id, attempt=held.attempt, step=step, steps=steps)
            self._brokers.send(session, progress, frames)
