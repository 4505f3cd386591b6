"""A client and no-op workers on one thread, so that they take one core and leave the other to what is measured.

Headers are made once and get each request's id written into them: as little of the time as possible is the rig's.
"""

import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import zmq

from imagegen_protocol.frames import decode_broker_to_client, decode_broker_to_worker, encode
from imagegen_protocol.limits import (
    DEFAULT_INLINE_BYTES,
    MAX_IDS_PER_MESSAGE,
)
from imagegen_protocol.messages import (
    Ack,
    BrokerHeartbeat,
    Chunk,
    ClientHeartbeat,
    Error,
    Fetch,
    ImageInfo,
    Ready,
    Release,
    Resend,
    Result,
    Submit,
    Work,
    WorkerHeartbeat,
)
from imagegen_protocol.transfers import Buffer, Download, Downloads, chunks

ID_BYTES = 16
_BLANK = bytes(range(ID_BYTES))
_BODY = b"x" * 100
"""Of a request: a short prompt and a few numbers take as much."""
Socket = Any
"""A `zmq.Socket[bytes]`; its methods are looked up by the million here."""


@dataclass
class Tally:
    """What one run gave: answers, seconds, and the latency of each answer in seconds."""

    answers: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)


class Dialect(Protocol):
    """What a contender's peers say; `answered` is called with the id of each request that is."""

    def submit(self, socket: Socket, request_id: bytes) -> None:
        """Send a request."""

    def read_answers(self, socket: Socket, answered: Callable[[bytes], None]) -> None:
        """Read what is there at the client."""

    def greet(self, worker: Socket, number: int) -> None:
        """Register a worker."""

    def work(self, worker: Socket) -> None:
        """Read what is there at a worker, and answer it at once."""

    def tick(self, client: Socket, workers: list[Socket]) -> None:
        """Do what has to be done once a second."""


def frames_of(socket: Socket, copy: bool) -> list[Any] | None:
    """Return the frames of a message, or None; the last frame uncopied if so wished."""
    try:
        return socket.recv_multipart(zmq.NOBLOCK, copy=copy)  # type: ignore[no-any-return]
    except zmq.Again:
        return None


class Plain:
    """For loops that only forward: an id and a body to the worker, the id and an image back."""

    def __init__(self, image: bytes, *, greets: bool) -> None:
        self._image = image
        self._greets = greets
        self._copy = len(image) < 2**15

    def submit(self, socket: Socket, request_id: bytes) -> None:
        """See `Dialect`."""
        socket.send_multipart((request_id, _BODY))

    def read_answers(self, socket: Socket, answered: Callable[[bytes], None]) -> None:
        """See `Dialect`."""
        while (frames := frames_of(socket, self._copy)) is not None:
            answered(bytes(frames[0]) if self._copy else frames[0].bytes)

    def greet(self, worker: Socket, number: int) -> None:
        """See `Dialect`."""
        if self._greets:
            worker.send(b"ready")

    def work(self, worker: Socket) -> None:
        """See `Dialect`."""
        while (frames := frames_of(worker, copy=True)) is not None:
            worker.send_multipart((frames[0], frames[1], self._image), copy=self._copy)

    def tick(self, client: Socket, workers: list[Socket]) -> None:
        """See `Dialect`."""


class Imagegen:
    """The whole protocol: heartbeats, fetched images, joined acknowledgements, releases."""

    def __init__(self, image: bytes) -> None:
        self._image = image
        self._copy = len(image) < 2**15
        self._submit = encode(Submit(request_id=_BLANK)).split(_BLANK)
        self._workers: dict[Socket, _NoopWorker] = {}
        self._downloads = Downloads()

    def submit(self, socket: Socket, request_id: bytes) -> None:
        """See `Dialect`."""
        socket.send_multipart((request_id.join(self._submit), _BODY))

    def read_answers(self, socket: Socket, answered: Callable[[bytes], None]) -> None:
        """See `Dialect`."""
        ended = []
        while (frames := frames_of(socket, self._copy)) is not None:
            header = frames[0] if self._copy else frames[0].bytes
            if self._copy and len(frames) > 1:
                at = header.index(b"request_id") + len(b"request_id") + 2  # behind the key, a tag and a length
                ended.append(header[at : at + ID_BYTES])
                continue
            match decode_broker_to_client(header):
                case Chunk() as chunk:
                    if self._downloads.on_chunk(chunk, frames[1].buffer, time.monotonic()) is not None:
                        ended.append(chunk.request_id)
                case Result() as result if self._downloads.get(result.request_id) is None:
                    self._downloads.add(_CountedDownload(result))
                case BrokerHeartbeat() as heard:
                    self._downloads.configure(heard.interval_seconds, heard.liveness, heard.fetch_window_bytes)
                case Error() as error:
                    raise RuntimeError(f"the broker says {error.code}: {error.message}")
        for fetch in self._downloads.fetches(time.monotonic()):
            socket.send(encode(fetch))
        for start in range(0, len(ended), MAX_IDS_PER_MESSAGE):
            ids = ended[start : start + MAX_IDS_PER_MESSAGE]
            socket.send(encode(Ack(request_ids=ids, token=self._downloads.token)))
        for request_id in ended:
            answered(request_id)

    def greet(self, worker: Socket, number: int) -> None:
        """See `Dialect`."""
        self._workers[worker] = _NoopWorker(worker, number, self._image)

    def work(self, worker: Socket) -> None:
        """See `Dialect`."""
        self._workers[worker].read()

    def tick(self, client: Socket, workers: list[Socket]) -> None:
        """See `Dialect`."""
        client.send(encode(ClientHeartbeat(token=self._downloads.token)))
        for fetch in self._downloads.fetches(time.monotonic()):  # repeats those that were not answered
            client.send(encode(fetch))
        for worker in self._workers.values():
            worker.beat()


class _CountedDownload(Download):
    """A payload whose bytes are counted and not stored, as the peers of the other contenders do."""

    def __init__(self, result: Result) -> None:
        super().__init__(result.request_id, result.payload_id or b"", result.frame_bytes, result.worker)
        self._data = _Length()  # type: ignore[assignment]


class _Length:
    """The length of a buffer."""

    def __init__(self) -> None:
        self._bytes = 0

    def __len__(self) -> int:
        return self._bytes

    def __iadd__(self, data: Buffer) -> Self:
        self._bytes += len(data)
        return self


class _NoopWorker:
    def __init__(self, socket: Socket, number: int, image: bytes) -> None:
        self._socket = socket
        self._image = image
        self._held: dict[bytes, None] = {}
        self._session = 0
        self._seen_beat = 0
        info = ImageInfo(format="png", width=512, height=512, seed=1)
        self._is_inline = len(image) <= DEFAULT_INLINE_BYTES
        answer = Result(
            request_id=_BLANK,
            worker=f"worker-{number}",
            model="noop",
            images=[info],
            payload_id=None if self._is_inline else _BLANK,
            frame_bytes=[] if self._is_inline else [len(image)],
        )
        self._answer = encode(answer).split(_BLANK)
        ready = Ready(
            worker_id=os.urandom(ID_BYTES),
            name=f"worker-{number}",
            host="here",
            gpu_id=number,
            device="none",
            backend="noop",
            models=["noop"],
            capacity=1024,
            max_batch_size=8,
        )
        socket.send(encode(ready))

    def read(self) -> None:
        while (frames := frames_of(self._socket, copy=True)) is not None:
            match decode_broker_to_worker(frames[0]):
                case Work(request_id=request_id):
                    self._held[request_id] = None
                    self._send(request_id)
                case Fetch() as fetch:
                    for chunk, data in chunks([self._image], fetch):
                        self._socket.send(encode(chunk), zmq.SNDMORE)
                        self._socket.send(data, copy=False)
                case Resend(request_ids=ids):
                    for request_id in ids:
                        self._send(request_id)
                case Release(request_ids=ids):
                    for request_id in ids:
                        self._held.pop(request_id, None)
                case BrokerHeartbeat() as heard if heard.session:
                    self._session, self._seen_beat = heard.session, heard.beat

    def _send(self, request_id: bytes) -> None:
        header = request_id.join(self._answer)
        if self._is_inline:
            self._socket.send_multipart((header, self._image))
        else:
            self._socket.send(header)

    def beat(self) -> None:
        if self._session:
            held = list(self._held)
            beat = WorkerHeartbeat(
                session=self._session, beat=self._seen_beat, finished=held, seconds_per_image=0.01
            )
            self._socket.send(encode(beat))


class Rig:
    """One client and some workers, connected."""

    def __init__(self, frontend: str | None, backend: str | None, dialect: Dialect, workers: int) -> None:
        """Dial both sides of what forwards; None: nothing does, the workers dial the client, which takes turns."""
        self._context = zmq.Context()
        self._dialect = dialect
        self._client = self._socket()
        if frontend is not None:
            self._client.connect(frontend)
        else:
            self._client.bind("tcp://127.0.0.1:*")
        at = backend or self._client.get_string(zmq.LAST_ENDPOINT)
        self._workers = [self._socket() for _ in range(workers)]
        for worker in self._workers:
            worker.connect(at)
        self._poller = zmq.Poller()
        for socket in (self._client, *self._workers):
            self._poller.register(socket, zmq.POLLIN)
        for number, worker in enumerate(self._workers):
            dialect.greet(worker, number)
        self._ids = itertools.count(int.from_bytes(os.urandom(8), "big") << 64)
        self._sent: dict[bytes, float] = {}
        self._tally = Tally()
        self._next_tick = 0.0

    def close(self) -> None:
        """Close all sockets."""
        self._context.destroy(0)

    def outstanding(self, count: int, seconds: float) -> Tally:
        """Keep so many requests outstanding for so long; return what came in that time."""
        tally = self._tally = Tally()
        begun = time.perf_counter()
        while (now := time.perf_counter()) < begun + seconds:
            for _ in range(count - len(self._sent)):
                self._send(now)
            self._turn(1000)
        return self._ended(tally, time.perf_counter() - begun)

    def at_rate(self, a_second: float, seconds: float) -> Tally:
        """Send at fixed times, whether or not the answers keep up; latencies count from those times."""
        tally = self._tally = Tally()
        begun = time.perf_counter()
        for number in range(int(a_second * seconds)):
            due = begun + number / a_second
            while (early := due - time.perf_counter()) > 0:
                self._turn(int(early * 1000))  # less than a millisecond: it spins, and is not late
            self._send(due)
            if number % 16 == 15:
                self._turn(0)  # late: answers must be read nonetheless
        return self._ended(tally, time.perf_counter() - begun)

    def _ended(self, tally: Tally, seconds: float) -> Tally:
        tally.seconds = seconds
        answers = tally.answers
        while self._sent:
            self._turn(1000)
        tally.answers = answers  # in the time; the latencies of those that came after it count as well
        return tally

    def _send(self, when: float) -> None:
        request_id = next(self._ids).to_bytes(ID_BYTES, "big")
        self._sent[request_id] = when
        self._dialect.submit(self._client, request_id)

    def _turn(self, milliseconds: int) -> None:
        for socket, _ in self._poller.poll(milliseconds):
            if socket is self._client:
                self._dialect.read_answers(socket, self._answered)
            else:
                self._dialect.work(socket)
        now = time.perf_counter()
        if now >= self._next_tick:
            self._next_tick = now + 1.0
            self._dialect.tick(self._client, self._workers)

    def _answered(self, request_id: bytes) -> None:
        sent = self._sent.pop(request_id, None)
        if sent is not None:
            self._tally.answers += 1
            self._tally.latencies.append(time.perf_counter() - sent)

    def _socket(self) -> Socket:
        socket = self._context.socket(zmq.DEALER)
        socket.set_hwm(0)
        socket.setsockopt(zmq.LINGER, 0)
        return socket
