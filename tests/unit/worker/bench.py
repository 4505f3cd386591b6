"""Test harness of the worker core: fake brokers, engine and clock; checks the core's tables after each event."""

import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from imagegen_protocol import encode, encode_request
from imagegen_protocol.messages import BrokerHeartbeat, Drain, Error, Fetch, ImageInfo, Release, Resend, Work
from imagegen_protocol.request import GenerationRequest
from imagegen_protocol.transfers import chunks, sizes_of
from imagegen_worker.core import events as ev
from imagegen_worker.core.capabilities import TaskCapabilities
from imagegen_worker.core.held_requests import HeldLimits
from imagegen_worker.core.model import Model, ResolvedRequest
from imagegen_worker.core.state import WorkerIdentity, WorkerLimits
from imagegen_worker.core.worker import WorkerCore

EPOCH = b"e" * 16
MODEL = Model(
    name="m",
    num_inference_steps=4,
    guidance_scale=7.5,
    width=64,
    height=64,
    size_multiple=8,
    max_side=512,
    tasks={"text-to-image": TaskCapabilities(), "image-to-image": TaskCapabilities(strength=0.5)},
)
IDENTITY = WorkerIdentity(
    worker_id=b"w" * 16,
    name="worker",
    host="h",
    gpu_id=0,
    gpu_uuid="GPU-1",
    version="1.2.3",
    backend="test",
    capacity=4,
    max_batch_size=2,
    batching="static",
    pid=1,
)


def rid(number: int) -> bytes:
    """Return the request id with this number."""
    return number.to_bytes(16, "big")


def resolved(**fields: Any) -> ResolvedRequest:
    """Return a request with all defaults filled in."""
    given = {
        "model": "m",
        "prompt": "p",
        "negative_prompt": None,
        "seeds": (1,),
        "num_inference_steps": 4,
        "guidance_scale": 7.5,
        "width": 64,
        "height": 64,
    }
    return ResolvedRequest(**{**given, **fields})


class Bench:
    """A core with a simulated clock; by default with a loaded model and registered with every broker."""

    def __init__(
        self,
        brokers: int = 1,
        *,
        warm: bool = True,
        registered: bool = True,
        drain: float = 30.0,
        input_bytes: int = 1_000_000,
        **held_limits: Any,
    ) -> None:
        self.now = 100.0
        limits = WorkerLimits(
            held=HeldLimits(**held_limits), input_bytes=input_bytes, orphan_seconds=60.0, drain_seconds=drain
        )
        self.core = WorkerCore(IDENTITY, brokers=brokers, limits=limits, now=self.now)
        self.sent: list[tuple[int, Any, tuple[Any, ...]]] = []
        self.payloads: dict[tuple[int, bytes], Sequence[bytes]] = {}
        """Payloads that a broker has, by the index of the broker and the id of the request."""
        self.fetches: deque[tuple[int, Fetch]] = deque()
        """FETCHes of the worker that no broker has answered."""
        self.jobs: dict[int, ev.Job] = {}
        """Jobs that were sent to the engine and have neither ended nor been cancelled."""
        self.all_jobs: list[ev.Job] = []
        self.alone: set[int] = set()
        """Numbers of the jobs that must run alone."""
        self.decoding: dict[int, ev.Decode] = {}
        """Jobs that were sent to the decoders and have neither been decoded nor cancelled."""
        self.cancelled: list[int] = []
        self.loads: list[str] = []
        self.log: list[ev.LogEvent] = []
        self.reconnects: list[int] = []
        self.status: int | None = None
        self.brokers = brokers
        self._beats = [0] * brokers
        if warm:
            self.event(ev.EngineReady((MODEL,), "cpu", 0.5))
            for broker in range(brokers if registered else 0):
                self.beat(broker)
        self.sent.clear()
        self.log.clear()

    # ---- time ---------------------------------------------------------------------------------------------

    def do(self, actions: list[ev.Action]) -> None:
        for action in actions:
            match action:
                case ev.Send(broker, message, frames):
                    assert len(encode(message)) <= 65_536
                    self.sent.append((broker, message, frames))
                    if isinstance(message, Fetch):
                        self.fetches.append((broker, message))
                case ev.Reconnect(broker):
                    self.reconnects.append(broker)
                case ev.Decode():
                    self.decoding[action.number] = action
                case ev.Job():
                    self.jobs[action.number] = action
                    self.all_jobs.append(action)
                case ev.LoadModel(name):
                    self.loads.append(name)
                case ev.Cancel(number):
                    self.jobs.pop(number, None)
                    self.decoding.pop(number, None)
                    self.cancelled.append(number)
                case ev.LogEvent():
                    self.log.append(action)
                case ev.Exit(status):
                    assert self.status is None, "the process exits only once"
                    self.status = status
        self.check()

    def check(self) -> None:
        """Check that each request is in exactly one state, and that all tables agree."""
        held = self.core.held
        states = [set(held.queued), set(held.running), set(held.finished)]
        assert sum(map(len, states)) == len(set().union(*states))
        assert held.finished_bytes == sum(answered.size for answered in held.finished.values())
        unfinished = {one.number: one.id for one in held.unfinished()}
        assert all(held.by_number(number).id == request_id for number, request_id in unfinished.items())
        receiving = {one.number for one in held.unfinished() if one.download is not None}
        assert receiving <= {one.number for one in held.queued.values()}, (
            "a request whose payload is incomplete does not run"
        )
        read = {one.number for one in held.unfinished() if one.unparsed is None} - receiving
        waiting = set(self.core._requests.gate._waiting)
        with_others = {*self.jobs, *self.decoding, *waiting}
        assert read == with_others, (
            "a parsed, unfinished request is at the engine, at the decoders, or waits for the gate"
        )
        assert not waiting & set(self.jobs)
        assert not set(self.decoding) & {*self.jobs, *waiting}
        assert len(self.jobs) == 1 or not self.alone & set(self.jobs), "an exclusive job runs alone"
        assert all(one.answer is not None for one in held.finished.values())
        assert self.core._state.actions == []
        self.check_transfers()

    def check_transfers(self) -> None:
        """Check that each payload is fetched from one broker or waits, and that no limit is exceeded."""
        receiver, limit = self.core._requests._receiver, self.core._state.limits.input_bytes
        receiving = {one.id: one for one in self.core.held.queued.values() if one.download is not None}
        assert receiver._receiving == receiving
        numbers = {one.number for one in self.core.held.queued.values()}
        assert receiver._reserved.keys() <= numbers, "no bytes are reserved for removed requests"
        assert receiver.reserved_bytes <= limit or (len(receiver._reserved) == 1 and not receiver._kept)
        for broker in range(self.brokers):
            downloads = self.core._brokers[broker].downloads
            assert downloads.outstanding <= downloads.window or len(downloads._active) <= 1
            ours = {one.id for one in receiving.values() if one.broker == broker}
            assert set(downloads._by_id) == ours - set(receiver._waiting)
            assert all(
                downloads.get(request_id) is receiving[request_id].download for request_id in downloads._by_id
            )

    def event(self, event: Any) -> None:
        self.do(self.core.handle(event, self.now))

    def advance(self, seconds: float) -> None:
        """Advance the clock, with a `Tick` at each deadline as the daemon would send it."""
        end = self.now + seconds
        while (deadline := self.core.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.do(self.core.handle(ev.Tick(), self.now))
            after = self.core.next_deadline()
            assert after is None or after > self.now, "a tick does all due work"
        self.now = end
        self.do(self.core.handle(ev.Tick(), self.now))

    # ---- brokers ------------------------------------------------------------------------------------------

    def receive(self, message: Any, *frames: bytes, broker: int = 0) -> None:
        self.event(ev.Received(broker, message, frames))

    def beat(self, broker: int = 0, session: int = 1, epoch: bytes | None = None, **fields: Any) -> None:
        """Send a heartbeat from a broker; each broker has an epoch of its own unless `epoch` is given."""
        epoch = epoch or (EPOCH if broker == 0 else bytes([broker]) * 16)
        self._beats[broker] += 1
        fields = {"beat": self._beats[broker], "interval_seconds": 1.0, "liveness": 3, **fields}
        self.receive(BrokerHeartbeat(epoch=epoch, session=session, **fields), broker=broker)

    def beats(self, seconds: float, broker: int = 0) -> None:
        """Advance the clock while a broker sends heartbeats."""
        for _ in range(round(seconds)):
            self.advance(1.0)
            self.beat(broker)

    def work(
        self,
        number: int,
        *images: bytes,
        broker: int = 0,
        body: dict[str, Any] | None = None,
        fetched: bool = False,
        **fields: Any,
    ) -> bytes:
        """Send WORK from a broker, with the payload inline or, if `fetched`, announced; see `serve`."""
        request = GenerationRequest(**{"prompt": "p", "seed": number, **(body or {})})
        known = self.core.held.get(rid(number))
        payload = (encode_request(request), *images)
        if fetched:
            self.payloads[broker, rid(number)] = payload
            fields["frame_bytes"] = sizes_of(payload)
        self.receive(Work(request_id=rid(number), **fields), *(() if fetched else payload), broker=broker)
        held = self.core.held.get(rid(number))
        if fields.get("alone") and held is not None and known is None:
            self.alone.add(held.number)
        return rid(number)

    def serve(self, count: int = 1_000_000, token: bytes = b"t" * 16) -> None:
        """Answer the oldest FETCHes, at most `count`; brokers without the payload send nothing."""
        while self.fetches and count:
            broker, fetch = self.fetches.popleft()
            count -= 1
            for chunk, data in chunks(self.payloads.get((broker, fetch.request_id), ()), fetch):
                self.receive(msgspec.structs.replace(chunk, token=token), bytes(data), broker=broker)

    def release(self, *numbers: int, broker: int = 0) -> None:
        self.receive(Release(request_ids=[rid(number) for number in numbers]), broker=broker)

    def resend(self, *numbers: int, broker: int = 0) -> None:
        self.receive(Resend(request_ids=[rid(number) for number in numbers]), broker=broker)

    def refuse(self, code: str = "worker_name_taken", broker: int = 0) -> None:
        self.receive(Error(code=code, message="no"), broker=broker)

    def drain(self, broker: int = 0) -> None:
        self.receive(Drain(), broker=broker)

    # ---- the decoders and the engine ----------------------------------------------------------------------

    def decoded_job(self, job: int) -> None:
        """Report that a job's input images are decoded, even if the job was cancelled meanwhile."""
        wanted = self.decoding.pop(job, None)
        request = resolved() if wanted is None else wanted.model.resolve(wanted.request, (64, 64))
        self.event(ev.Decoded(job, request))

    def number(self, number: int) -> int:
        """Return the job number of an unfinished request."""
        held = self.core.held.get(rid(number))
        assert held is not None
        return held.number

    def start(self, *numbers: int) -> None:
        self.event(ev.Started(tuple(self.number(number) for number in numbers)))

    def step(self, number: int, step: int, steps: int = 4) -> None:
        self.event(ev.Stepped((self.number(number),), step, steps))

    def finish(self, number: int, *images: bytes, warnings: tuple[str, ...] = ()) -> None:
        self.finish_job(self.number(number), *images, warnings=warnings)

    def finish_job(self, job: int, *images: bytes, warnings: tuple[str, ...] = ()) -> None:
        self.jobs.pop(job, None)
        images = images or (b"image",)
        info = ImageInfo(format="png", width=64, height=64, seed=1)
        self.event(
            ev.Finished(
                number=job,
                images=images,
                infos=(info,) * len(images),
                batch_size=1,
                queue_seconds=0.1,
                generation_seconds=0.2,
                encode_seconds=0.3,
                warnings=warnings,
            )
        )

    def fail(self, number: int, code: str = "generation_failed", message: str = "it broke") -> None:
        self.fail_job(self.number(number), code, message)

    def fail_job(self, job: int, code: str = "generation_failed", message: str = "it broke") -> None:
        self.jobs.pop(job, None)
        self.decoding.pop(job, None)
        self.event(ev.Failed(job, code, message))

    # ---- sent messages ------------------------------------------------------------------------------------

    def messages(self, kind: Any, broker: int = 0) -> list[Any]:
        return [message for to, message, _ in self.sent if to == broker and isinstance(message, kind)]

    def answers(self, number: int, broker: int = 0) -> list[Any]:
        """Return the results and errors that were sent for a request."""
        return [
            message
            for to, message, _ in self.sent
            if to == broker
            and not hasattr(message, "steps")
            and getattr(message, "request_id", None) == rid(number)
        ]

    def warnings(self) -> list[str]:
        """Return the texts of the logged warnings and errors."""
        return [line.text for line in self.log if line.level >= logging.WARNING]

    def states(self) -> tuple[list[bytes], list[bytes], list[bytes]]:
        held = self.core.held
        return list(held.queued), list(held.running), list(held.finished)
