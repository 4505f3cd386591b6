"""The payloads of one connection: answers that the client fetches, and requests that the broker fetches.

The received part of an answer is kept after a reconnect. The rest is not requested before the broker has sent the
answer's header on the new connection: another broker may not have the answer.
"""

import logging

from imagegen_client.events import Action, LogEvent, Payload, Send
from imagegen_client.link import Link
from imagegen_client.pending import Pending
from imagegen_protocol.messages import Chunk, Fetch, Result, Stats, StatsQuery, Submit
from imagegen_protocol.transfers import Download, Downloads, chunks


class Payloads:
    """Transfers in both directions; times are monotonic seconds."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._downloads = Downloads()
        self._paused: dict[bytes, Download] = {}
        """Answers that the broker may have lost, by request id."""

    @property
    def token(self) -> bytes:
        """Token of the last chunk or preview received on this connection."""
        return self._downloads.token

    @token.setter
    def token(self, token: bytes) -> None:
        self._downloads.token = token

    @property
    def inline_bytes(self) -> int:
        """Maximum size of an answer that the broker should send inline."""
        return self._downloads.inline_bytes

    def restart(self, *, new_connection: bool) -> None:
        """Stop fetching until the headers of the answers arrive again."""
        token = b"" if new_connection else self._downloads.token
        self._downloads = Downloads()
        self._downloads.token = token
        self._paused.clear()
        self.configure()

    def configure(self) -> None:
        """Apply the settings that the broker announced."""
        self._downloads.configure(self._link.interval, self._link.liveness, self._link.fetch_window_bytes)

    # ---- answers -----------------------------------------------------------------------------------------

    def begin(self, entry: Pending, header: Result | Stats) -> list[Action]:
        """Fetch the payload of an answer; a partly received payload with the same id is continued."""
        assert header.payload_id is not None, "the header was checked"
        download = entry.download
        if download is None or download.payload_id != header.payload_id:
            source = header.worker if isinstance(header, Result) else ""
            download = entry.download = Download(entry.id, header.payload_id, header.frame_bytes, source)
            entry.header = header
        self._paused.pop(entry.id, None)
        if self._downloads.get(entry.id) is download:
            return []
        self._downloads.add(download)
        return [_log("answer announced", download)]

    def receive(self, chunk: Chunk, payload: Payload, now: float) -> Download | None:
        """Store a chunk; return its download if the payload is complete now, else None.

        The next chunk of a paused answer continues it: the broker has the answer, and its ACCEPTED came late.
        """
        paused = self._paused.get(chunk.request_id)
        if paused is not None and (paused.payload_id, paused.received) == (chunk.payload_id, chunk.offset):
            self._downloads.add(self._paused.pop(chunk.request_id))
        return self._downloads.on_chunk(chunk, payload[0] if len(payload) == 1 else b"", now)

    def pause(self, entry: Pending) -> None:
        """Fetch no more of an answer until its header arrives again: the broker may have lost it."""
        if (download := self._downloads.remove(entry.id)) is not None:
            self._paused[entry.id] = download

    def stop(self, entry: Pending) -> None:
        """Stop fetching the answer of an entry, and discard the received part."""
        if entry.download is not None:
            self._downloads.remove(entry.id)
            self._paused.pop(entry.id, None)
            entry.download = entry.header = None

    def fetch(self, by_id: dict[bytes, Pending], now: float) -> list[Action]:
        """Request missing bytes, as far as the window allows."""
        actions: list[Action] = []
        if not len(self._downloads):  # the common case
            return actions
        for fetch in self._downloads.fetches(now):
            download = self._downloads.get(fetch.request_id)
            if download is not None and download.stalls and fetch.offset == download.received:
                actions.append(_log("answer stalled, asking again", download))
                query = by_id[fetch.request_id].message
                if isinstance(query, StatsQuery):
                    actions.append(Send(query))  # the broker may have dropped that answer
            actions.append(Send(fetch))
        return actions

    def deadline(self) -> float:
        """Return when `fetch` is due although nothing arrives; infinite if no bytes are outstanding."""
        return self._downloads.deadline()

    # ---- requests ----------------------------------------------------------------------------------------

    def answer(self, entry: Pending | None, fetch: Fetch) -> list[Action]:
        """Return the chunks of a request's payload that a FETCH requests; none if the request is unknown."""
        if entry is None or not isinstance(entry.message, Submit) or fetch.payload_id != fetch.request_id:
            return []
        return [Send(chunk, (memoryview(data),)) for chunk, data in chunks(entry.payload, fetch)]


def _log(text: str, download: Download) -> LogEvent:
    fields = {
        "request_id": download.request_id.hex(),
        "received": str(download.received),
        "total": str(download.total),
    }
    return LogEvent(logging.DEBUG, text, fields)
