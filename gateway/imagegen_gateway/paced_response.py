"""Responses that are sent in parts, so that a slow client does not hold a whole body in the socket's buffer."""

from collections.abc import AsyncIterable, Mapping

from starlette.responses import StreamingResponse

PART_BYTES = 64 * 1024
"""Length of one part. The server waits until the client has read most of it before it takes the next one."""


class PacedResponse(StreamingResponse):
    """A response with a known length, from bytes or from parts that are read as they are sent."""

    def __init__(
        self, content: bytes | AsyncIterable[bytes], headers: Mapping[str, str], length: int | None = None
    ) -> None:
        """Create a response; `length` is that of all parts."""
        parts = _parts(content) if isinstance(content, bytes) else content
        size = len(content) if isinstance(content, bytes) else length
        super().__init__(parts, headers={**headers, "content-length": str(size)})


async def _parts(content: bytes) -> AsyncIterable[bytes]:
    for start in range(0, len(content), PART_BYTES):
        yield content[start : start + PART_BYTES]
