"""Target of the client's core: a broker that sends well-typed messages with extreme values at any time."""

from typing import Any, get_args

from imagegen_client import events as ev
from imagegen_protocol import ProtocolError, UnsupportedVersionError
from imagegen_protocol.frames import decode_broker_to_client, decode_from_client, encode
from imagegen_protocol.messages import BrokerHeartbeat, BrokerToClient, Chunk, Error, Result, Stats, Submit
from tests.fuzz import values
from tests.fuzz.choices import Choices
from tests.unit.client.core_harness import FIRST, SECOND, CoreHarness

MAX_ACTIONS = 10_000
MAX_TICKS = 500


class ClientScript(CoreHarness):
    """A client of a broker that sends what `choices` say."""

    def __init__(self, choices: Choices) -> None:
        super().__init__(
            FIRST,
            SECOND,
            connect_timeout=choices.pick((None, 2.0)),
            retry_overloaded=choices.boolean(),
            receive_maximum=choices.pick((None, 1)),
        )
        self.choices = choices
        self.asked: set[bytes] = set()

    def _perform(self, actions) -> None:
        assert len(actions) <= MAX_ACTIONS
        for action in actions:
            if isinstance(action, ev.Send):
                decode_from_client(encode(action.message))
        super()._perform(actions)
        deadline = self.core.next_deadline()
        assert deadline is None or abs(deadline) < 1e12

    def step(self) -> None:
        """Let one thing happen."""
        step = self.choices.pick(
            (self.broker_message, self.broker_message, self.application, self.time, self.network)
        )
        step()

    def broker_message(self) -> None:
        """Let the broker send a message."""
        kind = self.choices.pick((BrokerHeartbeat, Result, *get_args(BrokerToClient)))
        fixed: dict[str, Any] = {}
        pending = self.core._pending.by_id
        if (
            pending
            and kind is not BrokerHeartbeat
            and "request_id" in kind.__struct_fields__
            and self.choices.boolean()
        ):
            fixed["request_id"] = self.choices.pick(list(pending))
        if kind is Error and self.choices.boolean():
            fixed["code"] = self.choices.pick(
                ("overloaded", "unauthorized", "unsupported_version", "deadline_exceeded")
            )
        message = values.checked(values.make(kind, self.choices, **fixed), decode_broker_to_client)
        count = len(message.images) if isinstance(message, Result) else self.choices.integer(0, 2)
        if isinstance(message, Chunk | Stats):
            count = 1
        self.handle(ev.Received(message, [self.choices.pick((b"x", b"", bytes(4096)))] * count))

    def application(self) -> None:
        """Let the application ask for something."""
        key = self.choices.pick(values.IDS)
        if key in self.asked:
            self.handle(ev.CancelRequested(key))
            return
        self.asked.add(key)
        if self.choices.boolean():
            self.handle(ev.StatsRequested(key, self.choices.pick((5.0, 5e-324, 1e6))))
        else:
            submit = values.checked(
                values.make(Submit, self.choices, request_id=key, frame_bytes=[]), decode_from_client
            )
            self.handle(ev.SubmitRequested(submit, (b"body", bytes(self.choices.pick((0, 30_000))))))

    def time(self) -> None:
        """Let time pass: to each deadline on the way, or at once."""
        seconds = self.choices.pick((1.0, 0.01, 4.0, 1e-9, 3600.0, 1e6))
        if self.choices.boolean() and seconds <= 4.0:
            self.advance(seconds, MAX_TICKS + int(seconds * 200))
        else:
            self.now += seconds
            self.handle(ev.Tick())

    def network(self) -> None:
        """Let the connection break, or bytes arrive that are no message."""
        error = self.choices.pick((ProtocolError, UnsupportedVersionError))("test")
        error.request_id, error.is_answer = self.choices.pick((None, *values.IDS)), self.choices.boolean()
        rejected, failed = ev.HandshakeRejected("test"), ev.HandshakeFailed("test")
        self.handle(self.choices.pick((ev.Disconnected(), failed, rejected, ev.InvalidMessage(error))))


def client_core(data: bytes) -> None:
    """Run a script that the bytes describe; after `close`, each request has ended once."""
    script = ClientScript(Choices(data))
    while not script.choices.is_empty:
        script.step()
    script.close()
    assert script.asked == set(script.outcomes)
    assert script.core.unfinished == 0
    assert script.core.next_deadline() is None
