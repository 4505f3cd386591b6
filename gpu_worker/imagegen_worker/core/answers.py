"""Requests as they are read, and answers as they are told."""

from imagegen_protocol import GenerationRequest, InvalidRequestError, check_frames, parse_request
from imagegen_protocol.messages import Result
from imagegen_worker.core.events import Finished
from imagegen_worker.core.held import Held

MAX_ERROR_MESSAGE_LENGTH = 2000
"""Longer ones are cut, so that an ERROR fits its header frame."""


def read_request(frames: tuple[bytes, ...]) -> GenerationRequest:
    """Return the request that a message carries behind its header. Raises `InvalidRequestError`."""
    if not frames:
        raise InvalidRequestError("the body frame is missing")
    request = parse_request(frames[0])
    check_frames(request, len(frames) - 1)
    return request


def result(held: Held, event: Finished, worker: str) -> Result:
    """Return the RESULT of a request that was read."""
    assert held.request is not None
    return Result(
        request_id=held.id,
        attempt=held.attempt,
        worker=worker,
        model=held.request.model,
        images=list(event.infos),
        batch_size=event.batch_size,
        queue_seconds=event.queue_seconds,
        generation_seconds=event.generation_seconds,
        encode_seconds=event.encode_seconds,
        parameters=held.request.parameters(),
    )


def cut(message: str) -> str:
    """Return an error's message as it can be sent."""
    message = message.encode(errors="replace").decode()  # half a surrogate pair can't be sent
    if len(message) <= MAX_ERROR_MESSAGE_LENGTH:
        return message
    return message[: MAX_ERROR_MESSAGE_LENGTH - 3] + "..."
