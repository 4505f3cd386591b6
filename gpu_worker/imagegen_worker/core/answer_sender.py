"""`AnswerSender`: sends answers with their images inline or in chunks, and returns requests."""

import hashlib

import msgspec

from imagegen_protocol.errors import RETURNED
from imagegen_protocol.limits import DEFAULT_INLINE_BYTES, ID_BYTES
from imagegen_protocol.messages import Error, Fetch, Result
from imagegen_protocol.transfers import chunks, sizes_of
from imagegen_worker.core.broker_session import BrokerSession, BrokerSessions
from imagegen_worker.core.held_requests import HeldRequest
from imagegen_worker.core.state import WorkerState


class AnswerSender:
    """Sends the messages that end a request at this worker: RESULT, ERROR and their chunks."""

    def __init__(self, state: WorkerState, brokers: BrokerSessions) -> None:
        self._state = state
        self._brokers = brokers

    def new_payload_id(self, held: HeldRequest) -> bytes:
        """Return a payload id that no other answer to the request has, from this or another worker."""
        unique = self._state.identity.worker_id + held.number.to_bytes(8)
        return hashlib.blake2b(unique, digest_size=ID_BYTES).digest()

    def send(self, session: BrokerSession, answer: Result | Error, held: HeldRequest) -> None:
        """Send an answer of the present attempt, with its images if they are small enough."""
        if answer.attempt != held.attempt:
            held.answer = answer = msgspec.structs.replace(answer, attempt=held.attempt)
        # The client's limit follows the speed of its link; that of this worker may be slower.
        limit = min(held.inline_bytes, DEFAULT_INLINE_BYTES)
        if isinstance(answer, Result) and sum(sizes := sizes_of(held.images)) > limit:
            answer = msgspec.structs.replace(answer, payload_id=held.payload_id, frame_bytes=sizes)
            self._brokers.send(session, answer)
        else:
            self._brokers.send(session, answer, held.images)

    def send_chunks(self, session: BrokerSession, held: HeldRequest, fetch: Fetch) -> None:
        """Send the part of an answer's images that a FETCH requests."""
        for chunk, data in chunks(held.images, fetch):
            self._brokers.send(session, chunk, (data,))

    def return_request(self, session: BrokerSession, request_id: bytes, attempt: int, reason: str = "") -> None:
        """Return a request to its broker. If the message is lost, the broker detects that from the heartbeats."""
        self._state.counters.outcomes[RETURNED] += 1
        message = "the worker is draining" if self._state.draining else reason or "the worker cannot accept it now"
        error = Error(code=RETURNED, message=message, request_id=request_id, attempt=attempt)
        self._brokers.send(session, error)
