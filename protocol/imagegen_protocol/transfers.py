"""Payloads that are fetched in chunks: the receiver asks for ranges of bytes, and the sender answers with chunks.

Only the receiver keeps state, and it decides how much is on the way: a window of bytes that it adapts to the speed
of the slowest link between it and the sender, so that other messages pass within a fraction of an interval.
`docs/protocol.md` states the rules.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from math import inf
from typing import NamedTuple

from imagegen_protocol.limits import (
    DEFAULT_FETCH_WINDOW_BYTES,
    DEFAULT_HEARTBEAT_INTERVAL_SECONDS,
    DEFAULT_LIVENESS,
    MAX_CHUNK_BYTES,
    MAX_FETCH_BYTES,
    MAX_INLINE_BYTES,
    MIN_CHUNK_BYTES,
)
from imagegen_protocol.messages import Chunk, Fetch

Buffer = bytes | bytearray | memoryview

INITIAL_WINDOW_BYTES = 16 * 1024
MIN_WINDOW_BYTES = 2 * MIN_CHUNK_BYTES
_FAST, _SLOW = 0.25, 1.0
"""Intervals that the answer to a FETCH takes: below the first the window doubles, above the second it halves."""


# ---- the sender ------------------------------------------------------------------------------------------


def sizes_of(frames: Sequence[Buffer]) -> list[int]:
    """Return the `frame_bytes` of a payload."""
    return [len(frame) for frame in frames]


def chunks(frames: Sequence[Buffer], fetch: Fetch) -> Iterator[tuple[Chunk, Buffer]]:
    """Yield the chunks, in order, that answer a FETCH; none beyond the end of the payload.

    A chunk that lies in one frame is a view of it, and one across several frames a copy.
    """
    end = min(fetch.offset + fetch.length, sum(map(len, frames)))
    starts = list(accumulate(map(len, frames), initial=0))
    for start in range(fetch.offset, end, fetch.chunk_bytes):
        stop = min(start + fetch.chunk_bytes, end)
        parts = [
            memoryview(frame)[max(start - first, 0) : stop - first]
            for frame, (first, last) in zip(frames, pairwise(starts), strict=True)
            if first < stop and last > start
        ]
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        yield Chunk(request_id=fetch.request_id, payload_id=fetch.payload_id, offset=start), data


# ---- the receiver ----------------------------------------------------------------------------------------


class _Ask(NamedTuple):
    """A FETCH whose chunks have not all arrived."""

    end: int
    length: int
    sent_at: float


class Download:
    """One payload on its way; it arrives in order, from the first byte to the last."""

    __slots__ = ("_data", "_sizes", "active_at", "asked", "asks", "payload_id", "request_id", "stalls", "total")

    def __init__(self, request_id: bytes, payload_id: bytes, frame_bytes: Sequence[int]) -> None:
        self.request_id = request_id
        self.payload_id = payload_id
        self._sizes = tuple(frame_bytes)
        self.total = sum(frame_bytes)
        """Size of the payload in bytes."""
        self._data = bytearray()
        self.asked = 0
        """Offset up to which bytes were asked for."""
        self.asks: deque[_Ask] = deque()
        self.active_at = 0.0
        """When the last chunk arrived, or the first bytes were asked for."""
        self.stalls = 0
        """Number of times in a row that it was asked for again."""

    @property
    def received(self) -> int:
        """Number of bytes that have arrived."""
        return len(self._data)

    @property
    def outstanding(self) -> int:
        """Number of bytes that were asked for and have not arrived."""
        return self.asked - len(self._data)

    @property
    def is_complete(self) -> bool:
        """Whether all bytes have arrived."""
        return len(self._data) == self.total

    def accept(self, offset: int, data: Buffer) -> bool:
        """Append a chunk. Return False, without effect, if it is not the next one, or too long."""
        if offset != len(self._data) or not data or offset + len(data) > self.total:
            return False
        self._data += data
        self.asked = max(self.asked, len(self._data))
        return True

    def restart(self) -> None:
        """Forget what was asked for and has not arrived."""
        self.asked = len(self._data)
        self.asks.clear()

    def frames(self) -> list[memoryview]:
        """Return the frames of the complete payload, as views of one buffer."""
        whole = memoryview(self._data).toreadonly()
        return [whole[start:stop] for start, stop in pairwise(accumulate(self._sizes, initial=0))]


class Downloads:
    """The payloads that one peer receives on one connection, the oldest first. Times are monotonic seconds.

    The bytes that were asked for and have not arrived never exceed the window. A payload of which no chunk arrives
    for the liveness time is asked for again; that time doubles up to 16 times while nothing arrives.
    """

    def __init__(self) -> None:
        self.window = INITIAL_WINDOW_BYTES
        self.token = b""
        """Token of the last chunk or preview received on this connection."""
        self._by_id: dict[bytes, Download] = {}
        self._unasked: OrderedDict[bytes, Download] = OrderedDict()
        """Downloads of which not all bytes were asked for."""
        self._active: dict[bytes, Download] = {}
        """Downloads with outstanding bytes; few, because the window is divided into pieces."""
        self._outstanding = 0
        self._interval = DEFAULT_HEARTBEAT_INTERVAL_SECONDS
        self._liveness = DEFAULT_LIVENESS
        self._max_window = DEFAULT_FETCH_WINDOW_BYTES

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def inline_bytes(self) -> int:
        """Size of a payload that the link transfers in a fraction of an interval: it may be sent inline."""
        return min(self.window, MAX_INLINE_BYTES)

    @property
    def outstanding(self) -> int:
        """Number of bytes that were asked for and have not arrived."""
        return self._outstanding

    def configure(self, interval: float, liveness: int, max_window: int) -> None:
        """Apply the settings that the broker announces: seconds, intervals, bytes."""
        self._interval, self._liveness = interval, liveness
        self._max_window = max(MIN_CHUNK_BYTES, max_window)
        self.window = min(self.window, self._max_window)

    def get(self, request_id: bytes) -> Download | None:
        """Return the download of a request."""
        return self._by_id.get(request_id)

    def add(self, download: Download) -> None:
        """Fetch a payload, in place of another one of the same request; it may have arrived in part."""
        self.remove(download.request_id)
        download.restart()
        self._by_id[download.request_id] = self._unasked[download.request_id] = download

    def remove(self, request_id: bytes) -> Download | None:
        """Stop fetching the payload of a request; return it, None if there is none."""
        download = self._by_id.pop(request_id, None)
        if download is not None:
            self._unasked.pop(request_id, None)
            self._active.pop(request_id, None)
            self._outstanding -= download.outstanding
        return download

    def on_chunk(self, chunk: Chunk, data: Buffer, now: float) -> Download | None:
        """Accept a chunk; return its download if it is complete now, which is removed."""
        if chunk.token:
            self.token = chunk.token
        download = self._by_id.get(chunk.request_id)
        if download is None or download.payload_id != chunk.payload_id:
            return None
        before = download.outstanding
        if not download.accept(chunk.offset, data):
            return None
        self._outstanding += download.outstanding - before
        download.active_at, download.stalls = now, 0
        if not download.outstanding:
            self._active.pop(download.request_id, None)
        self._measure(download, now)
        return self.remove(download.request_id) if download.is_complete else None

    def _measure(self, download: Download, now: float) -> None:
        """Adapt the window to the time that a completed FETCH took."""
        while download.asks and download.received >= download.asks[0].end:
            ask = download.asks.popleft()
            seconds = now - ask.sent_at
            if seconds > _SLOW * self._interval:
                self._halve_window()
            elif seconds < _FAST * self._interval and ask.length >= self.window // 4:
                self.window = min(self._max_window, 2 * self.window)

    def _halve_window(self) -> None:
        self.window = min(self._max_window, max(MIN_WINDOW_BYTES, self.window // 2))

    def fetches(self, now: float) -> list[Fetch]:
        """Return the FETCHes to send now."""
        for download in list(self._active.values()):
            if now >= self._stalls_at(download):
                self._ask_again(download)
        messages: list[Fetch] = []
        while self._unasked and (fetch := self._next_fetch(now)) is not None:
            messages.append(fetch)
        return messages

    def _ask_again(self, download: Download) -> None:
        self._outstanding -= download.outstanding
        download.restart()
        download.stalls += 1
        self._halve_window()
        del self._active[download.request_id]
        self._unasked[download.request_id] = download

    def _next_fetch(self, now: float) -> Fetch | None:
        request_id, download = next(iter(self._unasked.items()))
        piece = max(MIN_CHUNK_BYTES, self.window // 2)
        length = min(piece, download.total - download.asked, MAX_FETCH_BYTES)
        if self._outstanding + length > self.window:
            return None
        fetch = Fetch(
            request_id=request_id,
            payload_id=download.payload_id,
            offset=download.asked,
            length=length,
            chunk_bytes=min(piece, MAX_CHUNK_BYTES),
            token=self.token,
        )
        if not download.outstanding:
            download.active_at = now
            self._active[request_id] = download
        download.asked += length
        download.asks.append(_Ask(download.asked, length, now))
        self._outstanding += length
        if download.asked == download.total:
            del self._unasked[request_id]
        return fetch

    def restart(self) -> None:
        """Ask again for everything that is missing, on a new connection."""
        self.window = min(INITIAL_WINDOW_BYTES, self._max_window)
        self.token = b""
        self._outstanding = 0
        self._active.clear()
        self._unasked = OrderedDict(self._by_id)
        for download in self._by_id.values():
            download.restart()
            download.stalls = 0

    def _stalls_at(self, download: Download) -> float:
        """Return when an active download is asked for again if no chunk of it arrives."""
        return download.active_at + self._interval * self._liveness * (1 << min(download.stalls, 4))

    def deadline(self) -> float:
        """Return when `fetches` is due although no chunk arrives; infinite if nothing was asked for."""
        return min(map(self._stalls_at, self._active.values()), default=inf)
