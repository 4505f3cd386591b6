"""Target of the broker's core: well-typed messages with extreme values, failed sends, any time between them."""

from collections.abc import Sequence
from math import inf, isfinite
from typing import Any, get_args

import msgspec
from prometheus_client import CollectorRegistry, generate_latest

from imagegen_broker.core.events import (
    Action,
    KeyRevoked,
    LogEvent,
    Malformed,
    SendFailed,
    SendToClient,
    SendToWorker,
)
from imagegen_broker.metrics import BrokerCollector
from imagegen_broker.server import Snapshot
from imagegen_protocol import ProtocolError
from imagegen_protocol.capabilities import ModelCapabilities, encode_capabilities
from imagegen_protocol.frames import (
    decode_broker_to_client,
    decode_broker_to_worker,
    decode_from_client,
    decode_from_worker,
    encode,
)
from imagegen_protocol.limits import MAX_HEADER_BYTES
from imagegen_protocol.messages import (
    Chunk,
    ClientHeartbeat,
    ClientMessage,
    Error,
    Goodbye,
    Message,
    Progress,
    Ready,
    Result,
    Submit,
    WorkerHeartbeat,
    WorkerMessage,
)
from imagegen_protocol.statistics import from_msgpack, to_msgpack
from tests.fuzz import values
from tests.fuzz.choices import Choices
from tests.fuzz.wire import check_finite
from tests.unit.broker.bench import Bench

CLIENTS, WORKERS = ("a", "b", "c"), ("u", "v", "w")
MAX_FLUSHES = 100
"""Maximum number of flushes until the core has nothing left to do at one time."""
MAX_ACTIONS = 5000
"""Maximum number of actions of one flush: three clients and three workers with at most eight requests."""
MAX_DEADLINES = 40
"""Deadlines that are met one by one while time passes; then the loop was suspended."""


class BrokerScript(Bench):
    """A broker whose peers send what `choices` say; its tables and its messages are checked after each step."""

    def __init__(self, strategy: str, choices: Choices) -> None:
        small = choices.boolean()
        super().__init__(
            strategy=strategy,
            interval=choices.pick((1.0, 0.01, 60.0)),
            liveness=choices.pick((3, 2)),
            max_attempts=choices.pick((3, 1, 100)),
            step_timeout=choices.pick((300.0, None, 1.0)),
            default_model=choices.pick((None, "m")),
            traces=True,
            log_requests=True,
            **(
                {
                    "max_requests": 2,
                    "max_bytes": 1024,
                    "max_requests_per_client": 1,
                    "max_unacknowledged_per_client": 1,
                    "max_clients": 2,
                    "fetch_window_bytes": 65_536,
                    "max_transfer_bytes": 65_536,
                    "max_recent_ids": 4,
                }
                if small
                else {}
            ),
        )
        self.choices = choices
        self.unreachable: set[bytes] = set()
        self.tokens = [b""]
        self._failed: list[SendToClient | SendToWorker] = []
        if choices.pick((True, True, False)):
            self.past_grace()
            self.client(CLIENTS[0], ClientHeartbeat())
            self.ready(WORKERS[0])
            self.ready(WORKERS[1], capacity=1)

    # ---- checks ------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Flush until the core has nothing left to do, which takes a bounded number of flushes."""
        for _ in range(MAX_FLUSHES):
            self.flush()
            deadline = self.core.next_deadline()
            assert deadline == -inf or isfinite(deadline)
            if deadline > self.now:
                break
        else:
            raise AssertionError("busy loop: the core is never done")
        self.check()

    def flush(self) -> None:
        """Flush once, and report the sends that failed."""
        before = len(self.sent) + len(self.log_events) + len(self.state_changes)
        super().flush()
        assert len(self.sent) + len(self.log_events) + len(self.state_changes) - before <= MAX_ACTIONS
        failed, self._failed = self._failed, []
        for action in failed:
            self.core.handle(SendFailed(action), self.now)

    def perform(self, action: Action) -> None:
        """Check that the receiver can decode a message; keep it unless its connection is full."""
        super().perform(action)
        if isinstance(action, LogEvent):
            for value in action.fields.values():
                str(value)
        if not isinstance(action, SendToClient | SendToWorker):
            return
        is_client = isinstance(action, SendToClient)
        header = action.message if isinstance(action.message, bytes) else encode(action.message)
        assert len(header) <= MAX_HEADER_BYTES
        message = (decode_broker_to_client if is_client else decode_broker_to_worker)(header)
        if token := getattr(message, "token", b""):
            self.tokens.append(token)
        if (action.client_id if is_client else action.worker_id) in self.unreachable:
            self._failed.append(action)

    def check_statistics(self) -> None:
        """Raise an exception if the statistics or the metrics are not valid."""
        statistics = self.core.statistics(self.now)
        check_finite(msgspec.to_builtins(statistics))
        assert from_msgpack(to_msgpack(statistics)) == statistics
        registry = CollectorRegistry(auto_describe=False)
        registry.register(BrokerCollector(Snapshot.of(self.core, self.now)))
        text = generate_latest(registry).decode().lower()
        assert not any(line.endswith((" nan", "inf")) for line in text.splitlines() if not line.startswith("#"))

    # ---- steps -------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Let one thing happen."""
        self.clear()
        self.log_events.clear()
        self.state_changes.clear()
        step = self.choices.pick(
            (self.client_message, self.worker_message, self.worker_message, self.time_passes, self.something_odd)
        )
        step()

    def client_message(self) -> None:
        """Let a client send a message, most often a request."""
        name = self.choices.pick(CLIENTS)
        kind = self.choices.pick((Submit, Submit, *get_args(ClientMessage)))
        fixed: dict[str, Any] = {}
        if kind is Submit and self.choices.boolean():
            fixed = {"model": None, "frame_bytes": []}
        if kind is Submit and self.choices.boolean():
            fixed |= {"timeout_seconds": None}
        message = values.checked(self._make(kind, **fixed), decode_from_client)
        self.client(name, message, self._payload(message))

    def worker_message(self) -> None:
        """Let a worker send a message, most often about the requests that it has."""
        name = self.choices.pick(WORKERS)
        kind = self.choices.pick((Ready, WorkerHeartbeat, Result, *get_args(WorkerMessage)))
        fixed: dict[str, Any] = {}
        known = self.core.workers.by_id.get(name.encode())
        if kind is Ready and self.choices.boolean():
            fixed = {"worker_id": name.encode().ljust(16), "name": name, "models": ["m"], "warm": []}
        if kind is WorkerHeartbeat and known is not None and self.choices.boolean():
            fixed = {"session": known.session, "beat": known.beat}
        if kind is WorkerHeartbeat and known is not None and self.choices.boolean():
            fixed["running"] = list(known.assigned)
        if kind in (Result, Error, Progress) and known is not None and known.assigned:
            fixed["request_id"] = self.choices.pick(list(known.assigned))
        message = values.checked(self._make(kind, **fixed), decode_from_worker)
        self.worker(name, message, self._payload(message))

    def time_passes(self) -> None:
        """Let time pass: to each deadline on the way, or at once."""
        interval, silence = self.core.settings.interval, self.core.settings.silence
        seconds = self.choices.pick((interval, interval / 2, 1e-9, 0.0, silence, 3600.0, 1e6))
        end = self.now + seconds
        for _ in range(self.choices.pick((MAX_DEADLINES, 0))):
            if (deadline := self.core.next_deadline()) > end:
                break
            self.now = max(self.now, deadline)
            self.settle()
        self.now = end
        self.settle()

    def something_odd(self) -> None:
        """Let a peer send something invalid, lose its key, or stop or start to read."""
        is_client = self.choices.boolean()
        peer = self.choices.pick(CLIENTS if is_client else WORKERS).encode()
        match self.choices.integer(0, 3):
            case 0:
                problem = ProtocolError("test")
                problem.request_id, problem.is_answer = (
                    self.choices.pick((None, *values.IDS)),
                    self.choices.boolean(),
                )
                self.handle(Malformed("clients" if is_client else "workers", peer, problem))
            case 1:
                self.handle(KeyRevoked("clients" if is_client else "workers", peer))
            case 2:
                self.unreachable ^= {peer}
            case 3:
                self.check_statistics()

    def _make(self, kind: type[Message], **fixed: Any) -> Message:
        if self.choices.boolean() and "token" in kind.__struct_fields__:
            fixed["token"] = self.choices.pick(self.tokens[-8:])
        return values.make(kind, self.choices, **fixed)

    def _payload(self, message: Message) -> Sequence[bytes]:
        """Return a payload that often fits the header."""
        if isinstance(message, Ready):
            capabilities = values.value(msgspec.inspect.type_info(ModelCapabilities), self.choices)
            return self.choices.pick(((), encode_capabilities({"m": capabilities}), [b"\xc1"]))
        if isinstance(message, Chunk):
            return [self.choices.pick((b"x", b"", bytes(4096)))]
        count = len(message.images) if isinstance(message, Result) else self.choices.integer(0, 2)
        return [self.choices.pick((b"body", b"", bytes(20_000)))] * count

    # ---- the end -----------------------------------------------------------------------------------------

    def end(self) -> None:
        """Let all peers leave or fall silent: nothing remains."""
        self.check_statistics()
        if self.choices.boolean():
            for name in CLIENTS:
                self.client(name, Goodbye())
            for name in WORKERS:
                self.worker(name, Goodbye())
        for _ in range(self.core.settings.liveness + 4):
            self.now += self.core.settings.interval
            self.settle()
        core = self.core
        assert (core.table.requests, core.clients.by_id, core.workers.by_id) == ({}, {}, {})
        assert (len(core.scheduler.queue), core.table.bytes, core.scheduler.pool.capacity) == (0, 0, 0)
        self.check_statistics()


def broker_core(strategy: str, data: bytes) -> None:
    """Run a script that the bytes describe."""
    script = BrokerScript(strategy, Choices(data))
    while not script.choices.is_empty:
        script.step()
    script.end()
