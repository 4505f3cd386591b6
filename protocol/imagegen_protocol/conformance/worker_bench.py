"""The broker that a worker under test registers with."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgpack

from imagegen_protocol.conformance.fake_broker import FakeBroker, download
from imagegen_protocol.conformance.peers import Loop, Received, has, new_id
from imagegen_protocol.conformance.report import Violation, expect
from imagegen_protocol.frames import decode_from_worker
from imagegen_protocol.images import sniff_format
from imagegen_protocol.messages import Error, Ready, Release, Result, WorkerHeartbeat, WorkerReport

SEED = 7
BODY: bytes = msgpack.packb({"prompt": "a red circle", "seed": SEED})
M = TypeVar("M")


class WorkerBench(Loop):
    """The test bench of a worker: the worker under test and a fake broker."""

    def __init__(self, endpoint: str, patience: float) -> None:
        super().__init__(patience)
        self.broker = WorkerBroker(self, endpoint)

    # ---- registration and reports -------------------------------------------------------------------------

    def registered(self) -> Ready:
        """Wait until the worker is registered; return its READY."""
        self.broker.registers = True
        if self.broker.ready is not None and not self.broker.session:
            self.broker.register()
        self.until(lambda: self.broker.session and self.broker.report is not None, "expected READY and HEARTBEAT")
        assert self.broker.ready is not None
        return self.broker.ready

    def report(
        self, where: Callable[[WorkerReport], bool], what: str, seconds: float | None = None
    ) -> WorkerReport:
        """Wait for a report that is sent from now on and meets a condition."""
        start = time.monotonic()

        def find() -> WorkerReport | None:
            received = self.broker.last_report
            if received is None or received.at < start:
                return None
            assert isinstance(received.message, WorkerReport)
            return received.message if where(received.message) else None

        return self.until(find, what)

    # ---- requests ----------------------------------------------------------------------------------------

    def work(self, *frames: bytes, **keys: Any) -> bytes:
        """Send WORK; return its request id. Its further fields may violate the protocol."""
        request_id = keys.pop("request_id", None) or new_id()
        self.broker.send({"type": "work", "request_id": request_id, **keys}, *(frames or (BODY,)))
        return request_id

    def result(self, request_id: bytes) -> tuple[Result, list[bytes]]:
        """Wait for RESULT; return it and its images, which are fetched if necessary."""
        found: list[Received] = []

        def arrived() -> bool:
            answer = self.broker.take(Result, has(request_id=request_id)) or self.broker.take(
                Error, has(request_id=request_id)
            )
            if answer is not None:
                found.append(answer)
            return bool(found)

        self.until(arrived, "expected RESULT")
        message, frames = found[0].message, found[0].frames
        if isinstance(message, Error):
            raise Violation(f"expected RESULT, got ERROR {message.code}: {message.message}")
        assert isinstance(message, Result)
        expect(
            (message.payload_id is None) == (not message.frame_bytes), "payload_id without frame_bytes, or without"
        )
        if message.frame_bytes:
            expect(not frames, "RESULT has frames and frame_bytes")
            frames = self.fetch(message)
        self._check(message, frames)
        return message, frames

    def fetch(self, message: Result) -> list[bytes]:
        """Fetch the payload of a RESULT."""
        assert message.payload_id is not None
        data = download(self.broker, message.request_id, message.payload_id, sum(message.frame_bytes))
        frames = []
        for size in message.frame_bytes:
            frames.append(data[:size])
            data = data[size:]
        return frames

    def _check(self, message: Result, frames: list[bytes]) -> None:
        expect(len(frames) == len(message.images), f"{len(message.images)} descriptions of {len(frames)} images")
        for info, frame in zip(message.images, frames, strict=True):
            found = sniff_format(frame)
            expect(found == info.format, f"an image is described as {info.format}, and its bytes are {found}")

    def error(self, request_id: bytes | None, code: str, seconds: float | None = None) -> Error:
        """Wait for an ERROR with this code."""
        error, _ = self.receive(
            self.broker,
            Error,
            lambda each: each.request_id == request_id,
            what=f"expected ERROR {code}",
            seconds=seconds,
        )
        if error.code != code:
            raise Violation(f"expected ERROR {code}, got {error.code}: {error.message}")
        return error

    def release(self, *request_ids: bytes) -> None:
        """Send RELEASE and wait until the worker no longer lists the ids."""
        self.broker.send(Release(request_ids=list(request_ids)))
        self.report(
            lambda report: not held(report).intersection(request_ids), "expected a report without released ids"
        )

    def settle(self) -> None:
        """Release the requests that a check left unfinished, and discard received messages."""
        self.broker.is_silent = False
        self.broker.registers = True
        if self.broker.report is not None and (ids := held(self.broker.report)):
            self.broker.send(Release(request_ids=list(ids)))
        self.broker.inbox.clear()


def held(report: WorkerReport) -> set[bytes]:
    """Return all ids of a report."""
    return {*report.queued, *report.running, *report.finished}


class WorkerBroker(FakeBroker):
    """Registers the worker, and stores its reports."""

    def __init__(self, loop: Loop, endpoint: str) -> None:
        super().__init__(loop, endpoint, decode_from_worker, "the worker")
        self.ready: Ready | None = None
        self.session = 0
        """Session of the worker; 0 while it is not registered."""
        self.registers = False
        """Whether READY is answered."""
        self.last_report: Received | None = None

    @property
    def report(self) -> WorkerReport | None:
        """The last report."""
        message = None if self.last_report is None else self.last_report.message
        return message if isinstance(message, WorkerReport) else None

    def connected(self) -> None:
        """Discard the registration of an earlier connection."""
        self.session = 0
        self.beat = 0
        self.ready = None

    def register(self) -> None:
        """Answer READY."""
        if not self.session:
            self.sessions += 1
            self.session = self.sessions
        self.heartbeat()

    def heartbeat(self, **keys: Any) -> None:
        """Send a HEARTBEAT of the worker's session."""
        super().heartbeat(**{"session": self.session, **keys})

    def tick(self, now: float) -> None:
        """Send a heartbeat if one is due and the worker is registered."""
        if self.session:
            super().tick(now)

    def on_received(self, received: Received) -> bool:
        """Process READY and HEARTBEAT; return whether a check may examine the message."""
        if not super().on_received(received):
            return False
        message = received.message
        if isinstance(message, Ready):
            self.ready, self.last_report = message, received
            if self.registers:
                self.register()
            return False
        if isinstance(message, WorkerHeartbeat):
            self.last_report = received
            return False
        return True
