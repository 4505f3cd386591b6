"""A simulated client process: the real core, and an application that submits, cancels and closes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from imagegen_client.core import ClientCore
from imagegen_client.events import (
    Answer,
    CancelRequested,
    CloseRequested,
    Complete,
    Connect,
    Received,
    Send,
    SubmitRequested,
    Tick,
)
from imagegen_protocol import GenerationRequest, encode_request
from imagegen_protocol.limits import MAX_FETCH_BYTES
from imagegen_protocol.messages import Accepted, Ack, Chunk, Fetch, Result, Submit
from tests.simulation import invariants
from tests.simulation.network import Line
from tests.simulation.peers import Peer
from tests.simulation.receiving import Receiving
from tests.simulation.witness import Ask

if TYPE_CHECKING:
    from tests.simulation.world import World

READ_SECONDS = 0.3
"""Seconds between two messages that a slow client reads."""

GREEDY_SECONDS = 0.4
"""Seconds between two FETCHes of a greedy client for everything."""


class ClientPeer(Peer):
    """One run of a client process."""

    is_client = True

    def __init__(self, world: "World", index: int) -> None:
        super().__init__(world, f"client {index}.{world.runs(f'client {index}')}")
        self.index = index
        brokers = [f"broker {(index + number) % world.plan.brokers}" for number in range(world.plan.brokers)]
        self.core = ClientCore(brokers, retry_overloaded=world.plan.retry_overloaded)
        self.line: Line | None = None
        self.slow_until = 0.0
        self.mute_until = 0.0
        """Time until which it acknowledges nothing."""
        self.greedy_until = 0.0
        """Time until which it requests all of its payloads repeatedly."""
        self.asks: list[Ask] = []
        self.receiving = Receiving(self)
        self._downloads: Any = None
        """The core's table of downloads; a new table has requested nothing."""

    # ---- the application --------------------------------------------------------------------------------

    def ask(
        self,
        prompt: str,
        model: str | None,
        priority: int,
        timeout: float | None,
        progress: bool,
        image_bytes: int,
        input_bytes: int,
    ) -> Ask:
        """Submit a request for images of `image_bytes`; `input_bytes`: size of the input image, 0 for none."""
        world = self.world
        key = world.dice.randbytes(16)
        seed = world.dice.randrange(1_000_000)
        inputs = (world.dice.randbytes(input_bytes),) if input_bytes else ()
        images = 1 + seed % 3
        ask = Ask(
            key, seed, prompt, self, self.local(), timeout, model, images, image_bytes // images, world.now, inputs
        )
        world.witness.asks[key] = world.witness.open[key] = ask
        self.asks.append(ask)
        if world.recording:
            what = f"{prompt!r}, seed {seed}, timeout {timeout}, priority {priority}"
            world.tell(f"{self.name} asks for {what}: {key.hex()}", key)
        body = encode_request(
            GenerationRequest(prompt=prompt, seed=seed, num_images=images, inputs=["image"] if inputs else None)
        )
        submit = Submit(
            request_id=key,
            model=model,
            priority=priority,
            timeout_seconds=timeout,
            progress=progress,
            images=images,
        )
        self._do(self.core.handle(SubmitRequested(submit, [body, *inputs]), self.local()))
        return ask

    def cancel(self, ask: Ask) -> None:
        """Cancel a request."""
        if not ask.ends:
            ask.cancelled = True
            if self.world.recording:
                self.world.tell(f"{self.name} cancels {ask.key.hex()}", ask.key)
            self._do(self.core.handle(CancelRequested(ask.key), self.local()))

    def close(self) -> None:
        """Close the client; unfinished requests end in `ClientClosedError`."""
        self._do(self.core.handle(CloseRequested(), self.local()))
        self.die()

    def die(self) -> None:
        """Kill the process; its requests need no answer any more."""
        self.alive = False
        self._inbox.clear()
        for ask in self.asks:
            self.world.witness.open.pop(ask.key, None)
        if self.line is not None:
            self.world.network.hang_up(self.line)

    # ---- the shell --------------------------------------------------------------------------------------

    def hear(self, line: Line, message: Any, frames: Sequence[Any]) -> None:
        if self._inbox or self.slow_until > self.world.now:  # in order, also when it has just stopped being slow
            if not self._inbox:
                self.world.after(READ_SECONDS, self._read_one)
            self._inbox.append((self._take, (line, message, frames)))
        else:
            self.when_awake(self._take, line, message, frames)

    def _read_one(self) -> None:
        if self.frozen or not self.alive or not self._inbox:
            return
        if self.slow_until <= self.world.now:
            self.wake()
            return
        what, arguments = self._inbox.popleft()
        what(*arguments)
        if self._inbox:
            self.world.after(READ_SECONDS, self._read_one)

    def _take(self, line: Line, message: Any, frames: Sequence[Any]) -> None:
        if line is not self.line:
            return  # its socket is closed
        self.world.network.read(line, message, frames)
        if self.world.recording:
            self.world.tell_message(f"{line.name} -> {self.name}", message)
        actions = self.core.handle(Received(message, frames), self.local())
        if isinstance(message, Chunk) and self.core._payloads._downloads is self._downloads:
            self.receiving.on_chunk(line, message, frames)
        elif isinstance(message, Result):
            self.receiving.on_header(message.request_id, message.payload_id)
        elif isinstance(message, Accepted):
            self.receiving.pause(message.request_ids)
        self._do(actions)

    def tick(self) -> None:
        self._do(self.core.handle(Tick(), self.local()))

    def next_deadline(self) -> float | None:
        return self.core.next_deadline()

    def _do(self, actions: list[Any]) -> None:
        if self.core._payloads._downloads is not self._downloads:
            self._downloads = self.core._payloads._downloads
            self.receiving.restart(self.line)
        for action in [*actions, *self.core.handle(Tick(), self.local())]:
            match action:
                case Send(Ack()) if self.mute_until > self.world.now:
                    self.world.tell(f"{self.name} does not acknowledge")
                case Send(message, payload):
                    if isinstance(message, Submit):
                        self._learn(message.request_id)
                    assert self.line is not None
                    if isinstance(message, Fetch):
                        self.receiving.on_fetch(self.line, message)
                    self.world.network.send_up(self.line, message, payload)
                case Complete(key, outcome):
                    self.receiving.forget(key, self.world.witness.key_of)
                    images = tuple(outcome.payload) if isinstance(outcome, Answer) else None
                    invariants.on_finish(self.world, self, key, outcome if images is None else images)
                case Connect(endpoint):
                    if self.line is not None:
                        invariants.on_reconnect(self.world, self, self.line)
                        self.world.network.hang_up(self.line)
                    self.world.tell(f"{self.name} dials {endpoint}")
                    self.line = self.world.network.dial(self, endpoint)
        self.arm(self.core.next_deadline())

    def ask_for_too_much(self) -> None:
        """Send a FETCH for all missing bytes of each payload, repeatedly while the client is greedy."""
        if not self.alive or self.line is None or self.greedy_until <= self.world.now:
            return
        for download in self.core._payloads._downloads._by_id.values():
            fetch = Fetch(
                request_id=download.request_id,
                payload_id=download.payload_id,
                offset=download.received,
                length=MAX_FETCH_BYTES,
                token=self.core._payloads.token,
            )
            self.world.network.send_up(self.line, fetch, ())
        self.world.after(GREEDY_SECONDS, self.ask_for_too_much)

    def _learn(self, request_id: bytes) -> None:
        """Record which request an id on the wire belongs to: a retry after `overloaded` has a new id."""
        key_of = self.world.witness.key_of
        if request_id not in key_of:
            key_of[request_id] = self.core._pending.by_id[request_id].key
