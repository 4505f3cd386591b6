"""The fake broker of a client under test."""

from collections.abc import Callable
from typing import Any

import msgpack

from imagegen_protocol.conformance.fake_broker import FakeBroker, Upload, download
from imagegen_protocol.conformance.images import png
from imagegen_protocol.conformance.peers import Loop, Received, lists, new_id
from imagegen_protocol.conformance.report import NotTested, Violation
from imagegen_protocol.errors import CancelledError
from imagegen_protocol.frames import decode_from_client
from imagegen_protocol.messages import (
    Accepted,
    Ack,
    Cancel,
    ClientHeartbeat,
    Error,
    ImageInfo,
    Result,
    Stats,
    StatsQuery,
    Submit,
)
from imagegen_protocol.transfers import sizes_of

PNG = png(8)


class Request:
    """A request of the client under test."""

    def __init__(self, received: Received) -> None:
        assert isinstance(received.message, Submit)
        self.submits = [received]
        self.submit = received.message
        self.id = received.message.request_id

    @property
    def is_fetched(self) -> bool:
        """Whether its payload is fetched."""
        return bool(self.submit.frame_bytes)


class ClientBench(Loop):
    """The test bench of a client: the client under test and a fake broker.

    Requests that no check has claimed are accepted, and answered when a check needs others.
    """

    def __init__(self, endpoint: str, patience: float) -> None:
        super().__init__(patience)
        self.requests: dict[bytes, Request] = {}
        """Requests that no check has claimed."""
        self.claimed: dict[bytes, Request] = {}
        self.accepts = True
        """Whether SUBMITs are accepted at once."""
        self.answers_cancels = True
        """Whether a CANCEL of a request that no check has claimed is answered."""
        self.cancels: list[Cancel] = []
        self.broker = _ClientBroker(self, endpoint)

    def next(
        self, where: Callable[[Request], bool] = lambda request: True, *, what: str = "no SUBMIT arrived"
    ) -> Request:
        """Claim the next request that meets a condition; answer the others. Raises `NotTested` if none arrives."""

        def claim() -> Request | None:
            for request in list(self.requests.values()):
                if where(request):
                    self.claimed[request.id] = self.requests.pop(request.id)
                    return request
                else:
                    self.finish(request)
            return None

        try:
            return self.until(claim, what)
        except Violation as violation:
            if self.broker.connection_count() and self.broker.messages:
                raise NotTested(what) from violation
            raise

    def fresh(self) -> Request:
        """Claim the next new request without sending ACCEPTED; all earlier requests are answered first."""
        for request in list(self.requests.values()):
            self.finish(request)
        self.accepts = False
        try:
            return self.next()
        finally:
            self.accepts = True

    def accept(self, *request_ids: bytes) -> None:
        """Send ACCEPTED."""
        self.broker.send(Accepted(request_ids=list(request_ids)))

    def result(self, request_id: bytes, images: int = 1, **keys: Any) -> Result:
        """Return the header of a RESULT."""
        info = ImageInfo(format="png", width=8, height=8, seed=7)
        return Result(request_id=request_id, worker="w", model="m", images=[info] * images, **keys)

    def finish(self, request: Request) -> None:
        """Answer a request with small images."""
        self.requests.pop(request.id, None)
        self.claimed.pop(request.id, None)
        images = request.submit.images
        self.broker.send(self.result(request.id, images), *[PNG] * images)

    def offer(self, request: Request, side: int = 200) -> Upload:
        """Answer a request with images that the client has to fetch."""
        frames = [png(side) for _ in range(request.submit.images)]
        upload = Upload(self.broker, request.id, new_id(), frames)
        self.send_offer(upload)
        return upload

    def send_offer(self, upload: Upload) -> None:
        """Send the header of a RESULT whose payload is fetched."""
        keys = {"payload_id": upload.payload_id, "frame_bytes": sizes_of(upload.frames)}
        self.broker.send(self.result(upload.request_id, len(upload.frames), **keys))

    def acked(self, request_id: bytes, what: str = "expected ACK") -> Ack:
        """Wait for an ACK of a request."""
        ack, _ = self.receive(self.broker, Ack, lists(request_id), what=what)
        return ack

    def payload(self, request: Request) -> list[bytes]:
        """Return the frames of a request; fetch them if necessary."""
        if not request.is_fetched:
            return request.submits[0].frames
        sizes = request.submit.frame_bytes
        data = download(self.broker, request.id, request.id, sum(sizes))
        ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
        return [data[end - size : end] for size, end in zip(sizes, ends, strict=True)]

    def settle(self) -> None:
        """Answer the requests that a check left unfinished, and discard received messages."""
        self.broker.is_silent = False
        self.accepts = self.answers_cancels = True
        for request in list(self.claimed.values()):
            self.finish(request)
        self.broker.inbox.clear()


class _ClientBroker(FakeBroker):
    """Stores SUBMITs, and answers messages that no check examines."""

    def __init__(self, bench: ClientBench, endpoint: str) -> None:
        super().__init__(bench, endpoint, decode_from_client, "the client")
        self._bench = bench
        self.answers_statistics = True

    def connected(self) -> None:
        """Register the client."""
        self.sessions += 1
        self.heartbeat()

    def on_received(self, received: Received) -> bool:
        """Store a message; return whether a check may examine it."""
        if not super().on_received(received):
            return False
        message = received.message
        if isinstance(message, Submit):
            self._on_submit(message, received)
            return False
        if isinstance(message, Cancel):
            self._on_cancel(message)
        elif isinstance(message, StatsQuery) and self.answers_statistics:
            self.send(Stats(request_id=message.request_id), msgpack.packb({}))
        return not isinstance(message, ClientHeartbeat)

    def _on_submit(self, message: Submit, received: Received) -> None:
        bench = self._bench
        known = bench.requests.get(message.request_id) or bench.claimed.get(message.request_id)
        if known is None:
            bench.requests[message.request_id] = Request(received)
        else:
            known.submits.append(received)
        if bench.accepts:
            bench.accept(message.request_id)

    def _on_cancel(self, message: Cancel) -> None:
        bench = self._bench
        bench.cancels.append(message)
        if bench.answers_cancels and message.request_id not in bench.claimed:
            bench.requests.pop(message.request_id, None)
            error = Error(code=CancelledError.code, message="cancelled", request_id=message.request_id)
            self.send(error)
