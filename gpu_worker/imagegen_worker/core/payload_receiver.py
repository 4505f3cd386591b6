"""Fetching of the payloads of queued requests from their brokers, in chunks."""

from collections.abc import Collection, Iterator, Sequence
from math import isfinite

from imagegen_protocol.messages import Chunk, Fetch
from imagegen_protocol.transfers import Download
from imagegen_worker.core.broker_session import BrokerSession, BrokerSessions
from imagegen_worker.core.held_requests import HeldRequest

KEEP_SECONDS = 60.0
"""Time for which a part of a payload is kept after its request was returned: the request may be sent again."""
MAX_ASKS = 5
"""Unanswered FETCHes for the same bytes, after which a request is returned to its broker."""


class PayloadReceiver:
    """Fetches payloads, the oldest first, within a limit in bytes; those beyond it wait.

    The size of a payload counts from its first FETCH until `release`, that is, until its images are decoded.
    """

    def __init__(self, brokers: BrokerSessions, limit: int) -> None:
        self._brokers = brokers
        self._limit = limit
        self._receiving: dict[bytes, HeldRequest] = {}
        """Requests whose payload has not arrived completely; each has a `download`."""
        self._waiting: dict[bytes, Download] = {}
        """Those of their downloads that wait for room, in order of arrival."""
        self._reserved: dict[int, int] = {}
        """Bytes of each payload that is fetched or decoded, by job number."""
        self._kept: dict[bytes, tuple[Download, float]] = {}
        """Parts of payloads of returned requests, and the times until which they are kept, in their order."""

    @property
    def reserved_bytes(self) -> int:
        """Sum of the sizes of all payloads that are fetched, decoded or kept."""
        return sum(self._reserved.values()) + sum(kept.received for kept, _ in self._kept.values())

    def without_receiving(self, numbers: Collection[int]) -> Collection[int]:
        """Return the job numbers without those of requests whose payload has not arrived completely."""
        if not self._receiving:
            return numbers
        return set(numbers).difference(held.number for held in self._receiving.values())

    def receive(self, held: HeldRequest, frame_bytes: Sequence[int]) -> None:
        """Fetch the payload of a request, or the missing part of it, as soon as there is room."""
        kept, _ = self._kept.pop(held.id, (None, 0.0))
        is_part = kept is not None and kept.total == sum(frame_bytes)
        held.download = kept if kept is not None and is_part else Download(held.id, held.id, frame_bytes)
        self._receiving[held.id] = held
        self._waiting[held.id] = held.download

    def on_chunk(
        self, session: BrokerSession, chunk: Chunk, frames: Sequence[bytes], now: float
    ) -> tuple[HeldRequest, tuple[bytes, ...]] | None:
        """Store a part of a payload; return its request and its frames if it is complete now."""
        if len(frames) != 1:
            return None
        download = session.downloads.on_chunk(chunk, frames[0], now)
        if download is None:
            return None
        held = self._receiving.pop(download.request_id)
        held.download, held.arrived = None, now
        return held, tuple(map(bytes, download.frames()))

    def move(self, held: HeldRequest, session: BrokerSession) -> None:
        """Fetch the rest of a payload from the broker that now requests the answer; restart a stalled fetch."""
        if held.download is None or held.id in self._waiting:
            return
        if held.broker != session.index or held.download.stalls:
            self._brokers[held.broker].downloads.remove(held.id)
            held.download.stalls = 0
            session.downloads.add(held.download)

    def release(self, held: HeldRequest) -> None:
        """Stop fetching the payload of a request, and free its bytes."""
        if held.download is not None:
            del self._receiving[held.id]
            if self._waiting.pop(held.id, None) is None:
                self._brokers[held.broker].downloads.remove(held.id)
            held.download = None
        self._reserved.pop(held.number, None)

    def keep(self, held: HeldRequest, now: float) -> None:
        """Keep the received part of the payload of a returned request, if there is room."""
        if held.download is not None and held.download.received and held.number in self._reserved:
            self._kept[held.id] = (held.download, now + KEEP_SECONDS)

    def _drop_kept(self, now: float) -> None:
        for request_id, (_, until) in list(self._kept.items()):
            if now < until and self.reserved_bytes <= self._limit:
                return
            del self._kept[request_id]

    def fetches(self, now: float) -> Iterator[tuple[HeldRequest, Fetch, BrokerSession]]:
        """Yield the FETCHes that are due, each with its request and the session of its broker."""
        self._drop_kept(now)
        self._start_waiting()
        for session in self._brokers.registered():
            if len(session.downloads):
                for fetch in session.downloads.fetches(now):
                    if (held := self._receiving.get(fetch.request_id)) is not None:
                        yield held, fetch, session

    def _start_waiting(self) -> None:
        for request_id, download in list(self._waiting.items()):
            held = self._receiving[request_id]
            while self._kept and self.reserved_bytes + download.total > self._limit:
                del self._kept[next(iter(self._kept))]
            if self._reserved and self.reserved_bytes + download.total > self._limit:
                return
            del self._waiting[request_id]
            self._reserved[held.number] = download.total
            self._brokers[held.broker].downloads.add(download)

    def deadlines(self) -> Iterator[float]:
        """Yield the times at which `fetches` has something to do."""
        yield from (until for _, until in list(self._kept.values())[:1])
        for session in self._brokers.registered():
            if isfinite(at := session.downloads.deadline()):
                yield at
