"""Checks of answers before they are fetched or delivered: workers and brokers may send anything."""

from typing import get_args

from imagegen_client.events import Answer, Payload
from imagegen_client.pending import Pending
from imagegen_protocol import CancelledError, ImagegenError, ProtocolError
from imagegen_protocol.error_texts import format_value
from imagegen_protocol.messages import Result, Stats
from imagegen_protocol.request import OutputFormat

_FORMATS = get_args(OutputFormat)


def check_answer(entry: Pending, answer: Result | Stats, payload: Payload) -> Answer | ImagegenError | None:
    """Return the outcome of a request or query, None if the payload of its answer is to be fetched."""
    if problem := _find_problem(entry, answer, payload):
        return ProtocolError(problem)
    if not answer.frame_bytes:
        return Answer(answer, payload)
    return None if entry.cancel_deadline is None else CancelledError("cancelled before the answer had arrived")


def _find_problem(entry: Pending, answer: Result | Stats, payload: Payload) -> str:
    frames, expected = 1, "the statistics in one frame"
    if isinstance(answer, Result):
        frames, most = len(answer.images), getattr(entry.message, "images", 1)
        expected = f"one frame per image, {frames} in total"
        if not 1 <= frames <= most:
            return f"expected 1 to {most} images, got {frames}"
        for info in answer.images:
            if info.format not in _FORMATS:
                return f"expected images in the format {' or '.join(_FORMATS)}, got {format_value(info.format)}"
    if answer.frame_bytes and (payload or answer.payload_id is None):
        return "expected a payload_id and no frames in addition to frame_bytes"
    sizes = answer.frame_bytes or [len(frame) for frame in payload]
    if len(sizes) != frames:
        return f"expected {expected}, got {len(sizes)} frames"
    return "" if all(sizes) else f"expected {expected}, got an empty frame"
