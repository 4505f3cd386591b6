"""Payloads that are fetched: the receiver requests byte ranges, and the sender answers with chunks.

Only the receiver keeps state. It limits the bytes in flight to a window, which it adapts to the speed of the
slowest link between it and the sender, so that other messages pass within a fraction of an interval.
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
MAX_SOURCES = 1024
"""Senders whose windows are remembered."""
_PATIENCE = 2.0
"""Multiple of the time that answers usually take after which a payload counts as stalled, if it is longer than the
liveness time."""
_MAX_STALL_FACTOR = 16
_FAST, _SLOW = 0.25, 1.0
"""Time to answer a FETCH, in intervals: below the first value the window doubles, above the second it halves."""


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
    sent_at: float
    outstanding: int
    """Outstanding bytes of the connection after this FETCH."""
    source_outstanding: int
    """Outstanding bytes of the same sender after this FETCH."""


class Download:
    """One partly received payload. Its bytes are received in order."""

    __slots__ = (
        "_data",
        "_sizes",
        "active_at",
        "asked",
        "asks",
        "payload_id",
        "request_id",
        "source",
        "stalls",
        "total",
    )

    def __init__(self, request_id: bytes, payload_id: bytes, frame_bytes: Sequence[int], source: str = "") -> None:
        """`source` is the name of the sender, if several send over one connection."""
        self.request_id = request_id
        self.payload_id = payload_id
        self.source = source
        self._sizes = tuple(frame_bytes)
        self.total = sum(frame_bytes)
        """Size of the payload in bytes."""
        self._data = bytearray()
        self.asked = 0
        """Offset up to which bytes were requested."""
        self.asks: deque[_Ask] = deque()
        self.active_at = 0.0
        """Time of the last chunk, or of the first FETCH."""
        self.stalls = 0
        """Number of consecutive repeated FETCHes without a chunk."""

    @property
    def received(self) -> int:
        """Number of bytes that have arrived."""
        return len(self._data)

    @property
    def outstanding(self) -> int:
        """Number of bytes that were requested and have not arrived."""
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
        """Reset the requested offset to the received one, so that missing bytes are requested again."""
        self.asked = len(self._data)
        self.asks.clear()

    def frames(self) -> list[memoryview]:
        """Return the frames of the complete payload, as views of one buffer."""
        whole = memoryview(self._data).toreadonly()
        return [whole[start:stop] for start, stop in pairwise(accumulate(self._sizes, initial=0))]


class _Source:
    """A sender of payloads. Several workers send through one broker connection, each over a link of its own."""

    __slots__ = ("answer_seconds", "outstanding", "unasked", "window")

    def __init__(self) -> None:
        self.window = INITIAL_WINDOW_BYTES
        self.outstanding = 0
        """Outstanding bytes, without those of stalled downloads."""
        self.unasked: OrderedDict[bytes, Download] = OrderedDict()
        """Downloads with bytes that were not requested yet, without stalled ones."""
        self.answer_seconds = 0.0
        """Seconds that the answer to a FETCH takes."""


class Downloads:
    """The payloads that one peer receives on one connection, the oldest of each sender first.

    The outstanding bytes (requested and not received) never exceed the window, nor those of one sender the window
    of the sender: both adapt to the time that the answer to a FETCH takes. Times are monotonic seconds.

    A payload of which no chunk arrives for the liveness time is *stalled*: its sender may be gone. It is requested
    again with a small FETCH, which does not count towards the adapted windows, so that it delays no other payload.
    The time until it is requested again doubles up to 16 times while nothing arrives, and is longer where answers
    take longer.
    """

    def __init__(self) -> None:
        self.window = INITIAL_WINDOW_BYTES
        self.token = b""
        """Token of the last chunk or preview received on this connection."""
        self._by_id: dict[bytes, Download] = {}
        self._sources: OrderedDict[str, _Source] = OrderedDict()
        self._waiting: dict[str, _Source] = {}
        """The senders that have `unasked` downloads."""
        self._stalled: OrderedDict[bytes, Download] = OrderedDict()
        """Stalled downloads without outstanding bytes."""
        self._active: dict[bytes, Download] = {}
        """Downloads with outstanding bytes; few, because the windows are divided into pieces."""
        self._outstanding = 0
        """Outstanding bytes, without those of stalled downloads."""
        self._retried = 0
        """Outstanding bytes of stalled downloads."""
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
        """Number of bytes that were requested and have not arrived."""
        return self._outstanding + self._retried

    def configure(self, interval: float, liveness: int, max_window: int) -> None:
        """Apply the settings that the broker announces: seconds, intervals, bytes."""
        self._interval, self._liveness = interval, liveness
        self._max_window = max(MIN_CHUNK_BYTES, max_window)
        self.window = min(self.window, self._max_window)

    def get(self, request_id: bytes) -> Download | None:
        """Return the download of a request."""
        return self._by_id.get(request_id)

    # ---- what is fetched ---------------------------------------------------------------------------------

    def add(self, download: Download) -> None:
        """Fetch a payload, in place of another one of the same request; it may have arrived in part."""
        self.remove(download.request_id)
        download.restart()
        download.stalls = 0
        self._by_id[download.request_id] = download
        self._queue(download)

    def remove(self, request_id: bytes) -> Download | None:
        """Stop fetching the payload of a request; return it, None if there is none."""
        download = self._by_id.pop(request_id, None)
        if download is not None:
            self._withdraw(download)
        return download

    def restart(self) -> None:
        """Request all missing bytes again, on a new connection."""
        self.window = min(INITIAL_WINDOW_BYTES, self._max_window)
        self.token = b""
        self._outstanding = self._retried = 0
        for table in (self._active, self._stalled, self._sources, self._waiting):
            table.clear()
        for download in self._by_id.values():
            download.restart()
            download.stalls = 0
            self._queue(download)

    def _queue(self, download: Download) -> None:
        source = self._waiting[download.source] = self._source_of(download)
        source.unasked[download.request_id] = download

    def _source_of(self, download: Download) -> _Source:
        source = self._sources.get(download.source)
        if source is None:
            source = self._sources[download.source] = _Source()
            if len(self._sources) > MAX_SOURCES:
                self._forget_source()
        return source

    def _forget_source(self) -> None:
        """Remove the oldest sender without downloads; its window is measured again later."""
        used = {download.source for download in self._by_id.values()}
        oldest = next((name for name in self._sources if name not in used), None)
        if oldest is not None:
            del self._sources[oldest]

    def _withdraw(self, download: Download) -> None:
        """Remove a download from the counters and queues."""
        self._unqueue(download)
        self._stalled.pop(download.request_id, None)
        self._active.pop(download.request_id, None)
        self._count(download, -download.outstanding)

    def _unqueue(self, download: Download) -> None:
        source = self._source_of(download)
        source.unasked.pop(download.request_id, None)
        if not source.unasked:
            self._waiting.pop(download.source, None)

    def _count(self, download: Download, change: int) -> None:
        if download.stalls:
            self._retried += change
        else:
            self._outstanding += change
            self._source_of(download).outstanding += change

    # ---- chunks ------------------------------------------------------------------------------------------

    def on_chunk(self, chunk: Chunk, data: Buffer, now: float) -> Download | None:
        """Accept a chunk; return its download if it is complete now, which is removed."""
        if chunk.token:
            self.token = chunk.token
        download = self._by_id.get(chunk.request_id)
        if download is None or download.payload_id != chunk.payload_id:
            return None
        before, was_stalled = download.outstanding, download.stalls > 0
        if not download.accept(chunk.offset, data):
            return None
        self._count(download, -before)
        download.active_at, download.stalls = now, 0
        self._count(download, download.outstanding)
        if was_stalled:
            self._stalled.pop(download.request_id, None)
            self._queue(download)
        if not download.outstanding:
            self._active.pop(download.request_id, None)
        self._measure(download, now)
        return self.remove(download.request_id) if download.is_complete else None

    def _measure(self, download: Download, now: float) -> None:
        """Adapt the windows to the time that a completed FETCH took."""
        while download.asks and download.received >= download.asks[0].end:
            ask = download.asks.popleft()
            seconds = now - ask.sent_at
            source = self._source_of(download)
            source.answer_seconds = max(seconds, source.answer_seconds / 2)
            if seconds > _SLOW * self._interval:
                self._shrink(download)
            elif seconds < _FAST * self._interval:
                if ask.source_outstanding >= source.window // 4:
                    source.window = min(self._max_window, 2 * source.window)
                if ask.outstanding >= self.window // 4:
                    self.window = min(self._max_window, 2 * self.window)

    def _shrink(self, download: Download) -> None:
        source = self._source_of(download)
        source.window = max(MIN_WINDOW_BYTES, source.window // 2)
        self.window = min(self._max_window, max(MIN_WINDOW_BYTES, self.window // 2))

    # ---- fetches -----------------------------------------------------------------------------------------

    def fetches(self, now: float) -> list[Fetch]:
        """Return the FETCHes to send now; the senders take turns."""
        for download in list(self._active.values()):
            if now >= self._stalls_at(download):
                self._stall(download)
        messages: list[Fetch] = []
        turns = deque(self._waiting.values())
        while turns and self._outstanding < self.window:
            source = turns.popleft()
            if (fetch := self._next_fetch(source, now)) is not None:
                messages.append(fetch)
                if source.unasked:
                    turns.append(source)
        while self._stalled and (fetch := self._next_retry(now)) is not None:
            messages.append(fetch)
        return messages

    def _stall(self, download: Download) -> None:
        self._withdraw(download)
        download.restart()
        download.stalls += 1
        self._shrink(download)
        self._stalled[download.request_id] = download

    def _next_retry(self, now: float) -> Fetch | None:
        request_id, download = next(iter(self._stalled.items()))
        length = min(MIN_CHUNK_BYTES, download.total - download.asked)
        if self.outstanding + length > self._max_window:
            return None
        del self._stalled[request_id]
        return self._ask(download, length, MIN_CHUNK_BYTES, now)

    def _next_fetch(self, source: _Source, now: float) -> Fetch | None:
        download = next(iter(source.unasked.values()))
        piece = max(MIN_CHUNK_BYTES, min(self.window, source.window) // 2)
        length = min(piece, download.total - download.asked, MAX_FETCH_BYTES)
        if source.outstanding + length > source.window or self._outstanding + length > self.window:
            return None
        if self.outstanding + length > self._max_window:
            return None
        if download.asked + length == download.total:
            self._unqueue(download)
        return self._ask(download, length, min(piece, MAX_CHUNK_BYTES), now)

    def _ask(self, download: Download, length: int, chunk_bytes: int, now: float) -> Fetch:
        fetch = Fetch(
            request_id=download.request_id,
            payload_id=download.payload_id,
            offset=download.asked,
            length=length,
            chunk_bytes=chunk_bytes,
            token=self.token,
        )
        if not download.outstanding:
            download.active_at = now
            self._active[download.request_id] = download
        download.asked += length
        self._count(download, length)
        outstanding = self._source_of(download).outstanding
        download.asks.append(_Ask(download.asked, now, self._outstanding, outstanding))
        return fetch

    def _stalls_at(self, download: Download) -> float:
        """Return the time at which an active download counts as stalled if no chunk arrives."""
        silence = self._interval * self._liveness
        # The sender may be busy with other receivers; repeated FETCHes would only add to its load.
        usual = min(_PATIENCE * self._source_of(download).answer_seconds, _MAX_STALL_FACTOR * silence)
        return download.active_at + max(silence * min(1 << download.stalls, _MAX_STALL_FACTOR), usual)

    def deadline(self) -> float:
        """Return when `fetches` is due although no chunk arrives; infinite if no bytes are outstanding."""
        return min(map(self._stalls_at, self._active.values()), default=inf)
