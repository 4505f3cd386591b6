"""`Transfers`: payloads in chunks. Input images go from clients to the broker to workers; answers are relayed."""

import hashlib
from itertools import count

from msgspec.structs import replace

from imagegen_broker.core.events import Payload, SendToClient, SendToWorker
from imagegen_broker.core.outbox import Outbox
from imagegen_broker.core.records import MIN_FETCH_WINDOW_BYTES, Client, Request, State, Worker
from imagegen_broker.core.request_table import RequestTable
from imagegen_protocol.errors import ProtocolError
from imagegen_protocol.limits import MAX_CHUNK_BYTES, MAX_PREVIEW_BYTES, MIN_CHUNK_BYTES
from imagegen_protocol.messages import Chunk, Error, Fetch, Progress
from imagegen_protocol.transfers import Buffer, chunks

_MAX_REPEATED_FETCHES = 5
"""Maximum number of FETCHes for the same bytes that a peer may leave unanswered."""
_MAX_UNCONFIRMED_PREVIEW_BYTES = 64 * 1024
"""Unconfirmed bytes of a client above which no previews are sent to it."""
_TOKEN_BYTES = 8


class Transfers:
    """Limits the bytes in flight to each peer: requested by it, or sent and not confirmed."""

    def __init__(self, table: RequestTable, outbox: Outbox) -> None:
        self._table = table
        self._outbox = outbox
        self._settings = table.settings
        self._serial = count()
        self.window = table.settings.fetch_window_bytes
        """Maximum number of bytes that one client may have requested and not confirmed; its share of the total."""

    def share_window(self, clients: int) -> None:
        """Divide the maximum of all transfers among this number of clients."""
        share = self._settings.max_transfer_bytes // max(1, clients)
        self.window = max(MIN_FETCH_WINDOW_BYTES, min(self._settings.fetch_window_bytes, share))

    def _new_token(self) -> bytes:
        """Return an unpredictable token: a peer can only confirm a message that it has read."""
        serial = next(self._serial).to_bytes(8, "big")
        return hashlib.blake2b(serial, key=self._settings.secret, digest_size=_TOKEN_BYTES).digest()

    # ---- answers, from workers to clients --------------------------------------------------------------------

    def on_client_fetch(self, client: Client, fetch: Fetch, now: float) -> None:
        """Relay a client's FETCH to the worker that holds the answer, as far as the window allows."""
        client.window.confirm(fetch.token)
        request = client.requests.get(fetch.request_id)
        relay = None if request is None else request.relay
        if request is None or relay is None or relay.payload_id != fetch.payload_id or request.worker is None:
            return
        to_end = relay.total - fetch.offset
        if fetch.length < min(MIN_CHUNK_BYTES, to_end):
            return  # many small chunks cost more than their bytes
        if fetch.offset != relay.end:
            if fetch.offset > relay.end > relay.position:
                return  # it continues a FETCH that exceeded the window
            if relay.end > relay.position and now < relay.asked_at + self._settings.interval:
                return  # the worker still sends the chunks requested before
            request.end_relay()  # it requests the payload again, so bytes requested before do not count
            relay.position = relay.end = fetch.offset
            relay.repeats += 1
        room = client.window.room(self.window) - client.asked_bytes
        length = min(fetch.length, room, to_end)
        if length < min(MIN_CHUNK_BYTES, to_end) or length <= 0:
            return
        if relay.end == relay.position:
            relay.waiting_since = now
        relay.end += length
        relay.asked_at = now
        client.asked_bytes += length
        self._table.set_resends(request, 0, now)
        if relay.repeats > _MAX_REPEATED_FETCHES:
            self._lose_answer(request, request.worker, now)
            return
        chunk_bytes = min(fetch.chunk_bytes, request.worker.chunk_bytes)
        relayed = replace(fetch, length=length, chunk_bytes=chunk_bytes, token=b"")
        self._outbox.add(SendToWorker(request.worker.id, relayed))

    def _lose_answer(self, request: Request, worker: Worker, now: float) -> None:
        """Requeue a request whose worker does not send the chunks of the answer."""
        self._table.drop_answer(request)
        self._outbox.release(worker.id, request.id)
        self._table.requeue(request, "answer_lost", now)

    def on_worker_chunk(self, worker: Worker, chunk: Chunk, payload: Payload, now: float) -> None:
        """Relay a chunk that the client has requested; drop any other chunk."""
        request = self._table.requests.get(chunk.request_id)
        relay = None if request is None else request.relay
        if request is None or relay is None or request.worker is not worker or len(payload) != 1:
            return
        size = len(payload[0])
        is_expected = chunk.payload_id == relay.payload_id and chunk.offset == relay.position
        if not is_expected or not 0 < size <= min(relay.end - relay.position, MAX_CHUNK_BYTES):
            return
        client = request.client
        self._table.counters.relayed_bytes += size
        relay.position += size
        relay.repeats = 0
        self._adapt_chunks(worker, size, now - relay.waiting_since)
        relay.waiting_since = now
        client.asked_bytes -= size
        if not client.blocked and not client.window.is_crowded(self.window):
            self._send_chunk_to_client(client, chunk, payload[0])

    def _adapt_chunks(self, worker: Worker, size: int, seconds: float) -> None:
        """Adapt the maximum chunk size of a worker to the speed of its link."""
        if seconds > self._settings.interval:
            worker.chunk_bytes = max(MIN_CHUNK_BYTES, worker.chunk_bytes // 2)
        elif seconds < self._settings.interval / 4 and 2 * size >= worker.chunk_bytes:
            worker.chunk_bytes = min(MAX_CHUNK_BYTES, 2 * worker.chunk_bytes)

    def _send_chunk_to_client(self, client: Client, chunk: Chunk, data: Buffer) -> None:
        token = self._new_token()
        client.window.add(token, len(data))
        self._outbox.add(SendToClient(client.id, replace(chunk, token=token), [data]))

    def serve_client(self, client: Client, frames: Payload, fetch: Fetch) -> None:
        """Answer a client's FETCH for a payload that the broker itself holds."""
        client.window.confirm(fetch.token)
        room = client.window.room(self.window) - client.asked_bytes
        if room > 0:
            for chunk, data in chunks(frames, replace(fetch, length=min(fetch.length, room))):
                self._send_chunk_to_client(client, chunk, data)

    def progress(self, client: Client, message: Progress, header: bytes, payload: Payload) -> SendToClient:
        """Return the PROGRESS to forward; without its preview if the client has too many unconfirmed bytes."""
        is_preview = len(payload) == 1 and len(payload[0]) <= MAX_PREVIEW_BYTES
        if not is_preview or not client.window.room(_MAX_UNCONFIRMED_PREVIEW_BYTES + 1):
            return SendToClient(client.id, header)
        token = self._new_token()
        client.window.add(token, len(payload[0]))
        return SendToClient(client.id, replace(message, token=token), payload)

    # ---- input images, from clients to workers ---------------------------------------------------------------

    def on_client_chunk(self, client: Client, chunk: Chunk, payload: Payload, now: float) -> None:
        """Store a chunk of a request's payload; queue the request once the payload is complete."""
        if len(payload) != 1 or len(payload[0]) > MAX_CHUNK_BYTES:
            return
        self._table.counters.received_bytes += len(payload[0])
        self._table.fetching[client.id] = client
        download = client.downloads.on_chunk(chunk, memoryview(payload[0]), now)
        request = client.requests.get(chunk.request_id)
        if download is not None and request is not None:
            self._table.receive_payload(request, download.frames())

    def on_worker_fetch(self, worker: Worker, fetch: Fetch) -> None:
        """Send the requested chunks of a request's payload to the worker that it was dispatched to."""
        worker.window.confirm(fetch.token)
        assignment = worker.assigned.get(fetch.request_id)
        room = worker.window.room(self._settings.fetch_window_bytes)
        if assignment is None or room <= 0 or not assignment.request.is_complete:
            return
        for chunk, data in chunks(assignment.request.payload, replace(fetch, length=min(fetch.length, room))):
            token = self._new_token()
            worker.window.add(token, len(data))
            self._outbox.add(SendToWorker(worker.id, replace(chunk, token=token), [data]))

    def flush(self, now: float) -> None:
        """Send FETCHes to clients for the missing parts of their requests' payloads."""
        clients, self._table.fetching = self._table.fetching, {}
        for client in clients.values():
            if client.is_reachable:
                for fetch in client.downloads.fetches(now):
                    self._outbox.add(SendToClient(client.id, fetch))
            elif not client.blocked:
                self._table.fetching[client.id] = client

    def tick(self, clients: dict[bytes, Client], now: float) -> None:
        """Once an interval: repeat overdue FETCHes, and fail requests whose client sends no chunks."""
        self.share_window(len(clients))
        for client in clients.values():
            if not len(client.downloads):
                continue
            self._table.fetching[client.id] = client
            for request in list(client.requests.values()):
                if request.state is State.RECEIVING and request.download is not None:
                    self._check_stalled(request, request.download.stalls, now)

    def _check_stalled(self, request: Request, stalls: int, now: float) -> None:
        if stalls <= _MAX_REPEATED_FETCHES:
            return
        text = f"the client did not send the payload of its request: it was asked {stalls} times"
        self._table.fail(request, Error(request_id=request.id, code=ProtocolError.code, message=text), now)
