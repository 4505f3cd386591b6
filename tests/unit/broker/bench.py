"""A broker core on a bench: fake peers, fake time, and everything it sends sorted by receiver."""

from collections.abc import Sequence
from math import inf
from typing import Any, TypeVar

from imagegen_broker.core.broker import BrokerCore
from imagegen_broker.core.events import (
    FLUSH,
    Action,
    Event,
    LogEvent,
    ReceivedFromClient,
    ReceivedFromWorker,
    Send,
    SendToClient,
    StateChange,
)
from imagegen_broker.core.records import Settings
from imagegen_protocol.frames import decode_broker_to_client, encode
from imagegen_protocol.messages import (
    Accepted,
    Ack,
    Cancel,
    Error,
    ImageInfo,
    Message,
    Progress,
    Ready,
    Result,
    Submit,
    Work,
    WorkerHeartbeat,
)
from tests.unit.broker.consistency import check_consistency

M = TypeVar("M", bound=Message)
EPOCH = b"e" * 16


def rid(number: int) -> bytes:
    """A request id."""
    return number.to_bytes(16, "big")


class Bench:
    """Drives a core through time, and checks its tables after each step."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("epoch", EPOCH)
        settings.setdefault("strategy", "round-robin")
        settings.setdefault("join_seconds", 0.0)
        self.now = 100.0
        self.core = BrokerCore(Settings(**settings), self.now)
        self.sent: list[tuple[str, bytes, Message, Sequence[Any]]] = []
        self.log_events: list[LogEvent] = []
        self.state_changes: list[StateChange] = []

    # ---- time ---------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Flush the core until it has nothing left to do."""
        self.flush()
        while self.core.next_deadline() == -inf:
            self.flush()
        self.check()

    def flush(self) -> None:
        """Flush the core once."""
        for action in self.core.handle(FLUSH, self.now):
            self.perform(action)

    def check(self) -> None:
        """Check the core's tables."""
        check_consistency(self.core)

    def perform(self, action: Action) -> None:
        """Keep an action for the test to inspect."""
        if isinstance(action, LogEvent):
            self.log_events.append(action)
        elif isinstance(action, StateChange):
            self.state_changes.append(action)
        else:
            self.sent.append(self.read(action))

    def handle(self, event: Event) -> None:
        """Have the core handle an event, and flush it."""
        self.core.handle(event, self.now)
        self.settle()

    @staticmethod
    def read(action: Send) -> tuple[str, bytes, Message, Sequence[Any]]:
        """Who gets it, and what it is."""
        side = "client" if isinstance(action, SendToClient) else "worker"
        peer = action.client_id if isinstance(action, SendToClient) else action.worker_id
        message = action.message
        if isinstance(message, bytes):
            message = decode_broker_to_client(message)
        return side, peer, message, action.payload

    def advance(self, seconds: float) -> None:
        """Let time pass as the shell would: settling at each deadline on the way."""
        end = self.now + seconds
        while (deadline := self.core.next_deadline()) <= end:
            self.now = max(self.now, deadline)
            self.settle()
        self.now = end
        self.settle()

    def past_grace(self) -> "Bench":
        self.now += self.core.settings.grace
        self.settle()
        return self

    # ---- clients ------------------------------------------------------------------------------------------

    def client(self, name: str, message: Any, payload: Sequence[Any] = ()) -> None:
        self.handle(ReceivedFromClient(name.encode(), message, payload))

    def submit(self, number: int, client: str = "c", **fields: Any) -> bytes:
        self.client(client, Submit(request_id=rid(number), **fields), [b"body"])
        return rid(number)

    def submit_bytes(self, number: int, size: int, client: str = "c") -> None:
        self.client(client, Submit(request_id=rid(number)), [b"b" * size])

    def ack(self, *numbers: int, client: str = "c") -> None:
        self.client(client, Ack(request_ids=[rid(n) for n in numbers]))

    def cancel(self, number: int, client: str = "c") -> None:
        self.client(client, Cancel(request_id=rid(number)))

    # ---- workers ------------------------------------------------------------------------------------------

    def worker(self, name: str, message: Any, payload: Sequence[Any] = ()) -> None:
        self.handle(ReceivedFromWorker(name.encode(), message, encode(message), payload))

    def ready(self, peer: str, capacity: int = 4, **fields: Any) -> None:
        fields.setdefault("worker_id", peer.encode().ljust(16, b"\0"))
        fields.setdefault("models", ["m"])
        fields.setdefault("name", peer)
        self.worker(
            peer,
            Ready(host="h", gpu_id=0, device="cpu", backend="test", capacity=capacity, max_batch_size=2, **fields),
        )

    def beat(self, name: str, *, echo: int | None = None, **fields: Any) -> None:
        """A worker's heartbeat; by default it echoes the last beat that it was sent."""
        known = self.core.workers.by_id.get(name.encode())
        fields.setdefault("session", known.session if known else 0)
        fields["beat"] = echo if echo is not None else (known.beat if known else 0)
        self.worker(name, WorkerHeartbeat(**fields))

    def result(self, name: str, request_id: bytes) -> None:
        message = Result(
            request_id=request_id,
            worker=name,
            model="m",
            images=[ImageInfo(format="png", width=8, height=8, seed=1)],
        )
        self.worker(name, message, [b"image"])

    def error(self, name: str, request_id: bytes, code: str) -> None:
        self.worker(name, Error(request_id=request_id, code=code, message="m"))

    # ---- what was sent ------------------------------------------------------------------------------------

    def messages(self, kind: type[M], side: str, peer: str) -> list[M]:
        return [m for s, p, m, _ in self.sent if s == side and p == peer.encode() and isinstance(m, kind)]

    def places(self, client: str = "c") -> list[tuple[bytes, int | None]]:
        """Requests and the places of which a client was told."""
        told = self.messages(Progress, "client", client)
        return [(sign.request_id, sign.place) for sign in told if sign.state == "queued"]

    def works(self, worker: str) -> list[bytes]:
        return [work.request_id for work in self.messages(Work, "worker", worker)]

    def accepted(self, client: str = "c") -> list[bytes]:
        return [i for m in self.messages(Accepted, "client", client) for i in m.request_ids]

    def results(self, client: str = "c") -> list[bytes]:
        return [m.request_id for m in self.messages(Result, "client", client)]

    def errors(self, client: str = "c") -> list[tuple[bytes | None, str]]:
        return [(m.request_id, m.code) for m in self.messages(Error, "client", client)]

    def ids(self, kind: type[Any], worker: str) -> list[bytes]:
        """Ids of RELEASE or RESEND messages to a worker."""
        return [i for m in self.messages(kind, "worker", worker) for i in m.request_ids]

    def clear(self) -> None:
        self.sent.clear()
