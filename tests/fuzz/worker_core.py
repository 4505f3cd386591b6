"""Target of the worker's core: brokers that send well-typed messages with extreme values, and an honest engine."""

from math import isfinite
from typing import Any, get_args

import msgspec

from imagegen_protocol import ProtocolError
from imagegen_protocol.frames import decode_broker_to_worker, decode_from_worker, encode
from imagegen_protocol.messages import BrokerHeartbeat, BrokerToWorker, Chunk, Release, Work
from imagegen_protocol.request import GenerationRequest
from imagegen_worker.core import events as ev
from tests.fuzz import values
from tests.fuzz.choices import Choices
from tests.unit.worker.bench import MODEL, Bench

MAX_ACTIONS = 5000
MAX_DEADLINES = 40
_BODY = msgspec.inspect.type_info(GenerationRequest)


class WorkerScript(Bench):
    """A worker of two brokers that send what `choices` say; its tables are checked after each event."""

    def __init__(self, choices: Choices) -> None:
        super().__init__(
            brokers=2, warm=choices.boolean(), drain=5.0, count=4, bytes=80_000, seconds=40.0, input_bytes=30_000
        )
        self.choices = choices

    def do(self, actions: list[ev.Action]) -> None:
        """Check that the brokers can decode each message."""
        assert len(actions) <= MAX_ACTIONS
        for action in actions:
            if isinstance(action, ev.Send):
                message = decode_from_worker(encode(action.message))
                assert message == action.message
        super().do(actions)
        deadline = self.core.next_deadline()
        assert deadline is None or isfinite(deadline)

    def step(self) -> None:
        """Let one thing happen."""
        step = self.choices.pick((self.message, self.message, self.work_message, self.engine, self.time, self.odd))
        step()

    def message(self) -> None:
        """Let a broker send a message."""
        kind = self.choices.pick(
            (BrokerHeartbeat, *(each for each in get_args(BrokerToWorker) if each is not Work))
        )
        # A drain ends the script soon, so it is rare.
        fixed: dict[str, Any] = {"request_ids": [self._id()]} if kind is Release else {}
        if "request_id" in kind.__struct_fields__:
            fixed["request_id"] = self._id()
        message = values.checked(values.make(kind, self.choices, **fixed), decode_broker_to_worker)
        frames = (self.choices.pick((b"x", b"", bytes(4096))),) if isinstance(message, Chunk) else ()
        self.receive(message, *frames, broker=self.choices.integer(0, 1))

    def _id(self) -> bytes:
        return self.choices.pick((*self.core.held.queued, *self.core.held.finished, *values.IDS))

    def work_message(self) -> None:
        """Let a broker dispatch a request: often a valid one, inline or fetched."""
        fields: dict[str, Any] = {"request_id": self.choices.pick(values.IDS), "frame_bytes": []}
        body = {"prompt": "p", "seed": 1}
        if self.choices.boolean():
            body = msgspec.to_builtins(values.value(_BODY, self.choices), builtin_types=(bytes,))
        else:
            fields |= {"model": None, "images": None}
        if self.choices.boolean():
            del fields["frame_bytes"]
        work = values.checked(values.make(Work, self.choices, **fields), decode_broker_to_worker)
        known = self.core.held.get(work.request_id)
        frames = (
            () if work.frame_bytes else (msgspec.msgpack.encode(body), *[b"image"] * self.choices.integer(0, 2))
        )
        self.receive(work, *frames, broker=self.choices.integer(0, 1))
        held = self.core.held.get(work.request_id)
        if work.alone and held is not None and known is None:
            self.alone.add(held.number)

    def engine(self) -> None:
        """Let the engine or the decoders make progress."""
        if not self.core.ready:
            self.event(ev.EngineReady((MODEL,), "cpu", self.choices.pick((None, 1e-6, 1e6))))
            return
        if self.decoding and self.choices.boolean():
            number = self.choices.pick(list(self.decoding))
            self.fail_job(number) if self.choices.boolean() else self.decoded_job(number)
            return
        for job in list(self.jobs)[:1]:
            held = self.core.held.by_number(job)
            match self.choices.integer(0, 3):
                case _ if held.id in self.core.held.queued:
                    self.event(ev.Started((job,)))
                case 0:
                    self.finish_job(job, bytes(self.choices.pick((1, 3000, 20_000))))
                    self.event(ev.Idle())
                case 1:
                    self.fail_job(
                        job, "generation_failed", self.choices.pick(("m", "\udc80" * 20_000, "\U0001f600" * 9000))
                    )
                    self.event(ev.Idle())
                case 2:
                    self.event(ev.Stepped((job,), 1, 4))
                case 3:
                    self.event(ev.Previewed(job, self.choices.pick((b"x", bytes(16_384), bytes(20_000)))))

    def time(self) -> None:
        """Let time pass: to each deadline on the way, or at once."""
        end = self.now + self.choices.pick((1.0, 0.01, 4.0, 1e-9, 70.0, 1e6))
        for _ in range(self.choices.pick((MAX_DEADLINES, 0))):
            deadline = self.core.next_deadline()
            if self.status is not None or deadline is None or deadline > end:
                break
            self.now = max(self.now, deadline)
            self.event(ev.Tick())
            after = self.core.next_deadline()
            assert after is None or after > self.now, "busy loop: what was due is still due"
        self.now = end
        self.event(ev.Tick())

    def odd(self) -> None:
        """Let something rare happen."""
        match self.choices.integer(0, 7):
            case 0:
                self.event(ev.DrainRequested("SIGTERM"))
            case 1:
                self.event(ev.CallFailed(2, 0.1, split=self.choices.boolean()))
            case _:
                self.event(ev.Malformed(self.choices.integer(0, 1), ProtocolError("test")))

    def end(self) -> None:
        """Drain: the worker ends, whatever it holds."""
        if self.status is None:
            self.event(ev.DrainRequested("SIGTERM"))
            for job in list(self.jobs):
                self.finish_job(job)
            self.event(ev.Idle())
            if self.status is None:
                self.now += 1000.0
                self.event(ev.Tick())
        assert self.status is not None
        assert self.core.next_deadline() is None


def worker_core(data: bytes) -> None:
    """Run a script that the bytes describe."""
    script = WorkerScript(Choices(data))
    while not script.choices.is_empty and script.status is None:
        script.step()
    script.end()
