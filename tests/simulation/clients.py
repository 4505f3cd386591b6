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
from tests.simulation.fleet_record import Submission
from tests.simulation.network import Link
from tests.simulation.peers import Peer
from tests.simulation.receiving import Receiving

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
        self.link: Link | None = None
        self.slow_until = 0.0
        self.no_acks_until = 0.0
        """Time until which it acknowledges nothing."""
        self.greedy_until = 0.0
        """Time until which it requests all of its payloads repeatedly."""
        self.submissions: list[Submission] = []
        self.receiving = Receiving(self)
        self._downloads: Any = None
        """The core's table of downloads; a new table has requested nothing."""

    # ---- the application --------------------------------------------------------------------------------

    def submit(
        self,
        prompt: str,
        model: str | None,
        priority: int,
        timeout: float | None,
        progress: bool,
        image_bytes: int,
        input_bytes: int,
    ) -> Submission:
        """Submit a request for images of `image_bytes`; `input_bytes`: size of the input image, 0 for none."""
        world = self.world
        key = world.rng.randbytes(16)
        seed = world.rng.randrange(1_000_000)
        inputs = (world.rng.randbytes(input_bytes),) if input_bytes else ()
        images = 1 + seed % 3
        submission = Submission(
            key, seed, prompt, self, self.local(), timeout, model, images, image_bytes // images, world.now, inputs
        )
        world.record.submissions[key] = world.record.unfinished[key] = submission
        self.submissions.append(submission)
        if world.recording:
            what = f"{prompt!r}, seed {seed}, timeout {timeout}, priority {priority}"
            world.log(f"{self.name} submits {what}: {key.hex()}", key)
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
        self._execute(self.core.handle(SubmitRequested(submit, [body, *inputs]), self.local()))
        return submission

    def cancel(self, submission: Submission) -> None:
        """Cancel a request."""
        if not submission.outcomes:
            submission.cancelled = True
            if self.world.recording:
                self.world.log(f"{self.name} cancels {submission.key.hex()}", submission.key)
            self._execute(self.core.handle(CancelRequested(submission.key), self.local()))

    def close(self) -> None:
        """Close the client; unfinished requests end in `ClientClosedError`."""
        self._execute(self.core.handle(CloseRequested(), self.local()))
        self.kill()

    def kill(self) -> None:
        """Kill the process; its requests need no answer any more."""
        self.alive = False
        self._inbox.clear()
        for submission in self.submissions:
            self.world.record.unfinished.pop(submission.key, None)
        if self.link is not None:
            self.world.network.close(self.link)

    # ---- the shell --------------------------------------------------------------------------------------

    def receive(self, link: Link, message: Any, frames: Sequence[Any]) -> None:
        if self._inbox or self.slow_until > self.world.now:  # in order, also when it has just stopped being slow
            if not self._inbox:
                self.world.after(READ_SECONDS, self._read_one)
            self._inbox.append((self._process, (link, message, frames)))
        else:
            self.when_awake(self._process, link, message, frames)

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

    def _process(self, link: Link, message: Any, frames: Sequence[Any]) -> None:
        if link is not self.link:
            return  # its socket is closed
        self.world.network.read(link, message, frames)
        if self.world.recording:
            self.world.log_message(f"{link.name} -> {self.name}", message)
        actions = self.core.handle(Received(message, frames), self.local())
        if isinstance(message, Chunk) and self.core._payloads._downloads is self._downloads:
            self.receiving.on_chunk(link, message, frames)
        elif isinstance(message, Result):
            self.receiving.on_header(message.request_id, message.payload_id)
        elif isinstance(message, Accepted):
            self.receiving.pause(message.request_ids)
        self._execute(actions)

    def tick(self) -> None:
        self._execute(self.core.handle(Tick(), self.local()))

    def next_deadline(self) -> float | None:
        return self.core.next_deadline()

    def _execute(self, actions: list[Any]) -> None:
        if self.core._payloads._downloads is not self._downloads:
            self._downloads = self.core._payloads._downloads
            self.receiving.restart(self.link)
        for action in [*actions, *self.core.handle(Tick(), self.local())]:
            match action:
                case Send(Ack()) if self.no_acks_until > self.world.now:
                    self.world.log(f"{self.name} does not acknowledge")
                case Send(message, payload):
                    if isinstance(message, Submit):
                        self._record_id(message.request_id)
                    assert self.link is not None
                    if isinstance(message, Fetch):
                        self.receiving.on_fetch(self.link, message)
                    self.world.network.send_up(self.link, message, payload)
                case Complete(key, outcome):
                    self.receiving.forget(key, self.world.record.key_of)
                    images = tuple(outcome.payload) if isinstance(outcome, Answer) else None
                    invariants.on_finish(self.world, self, key, outcome if images is None else images)
                case Connect(endpoint):
                    if self.link is not None:
                        invariants.on_reconnect(self.world, self, self.link)
                        self.world.network.close(self.link)
                    self.world.log(f"{self.name} dials {endpoint}")
                    self.link = self.world.network.dial(self, endpoint)
        self.arm(self.core.next_deadline())

    def ask_for_too_much(self) -> None:
        """Send a FETCH for all missing bytes of each payload, repeatedly while the client is greedy."""
        if not self.alive or self.link is None or self.greedy_until <= self.world.now:
            return
        for download in self.core._payloads._downloads._by_id.values():
            fetch = Fetch(
                request_id=download.request_id,
                payload_id=download.payload_id,
                offset=download.received,
                length=MAX_FETCH_BYTES,
                token=self.core._payloads.token,
            )
            self.world.network.send_up(self.link, fetch, ())
        self.world.after(GREEDY_SECONDS, self.ask_for_too_much)

    def _record_id(self, request_id: bytes) -> None:
        """Record which request an id on the wire belongs to: a retry after `overloaded` has a new id."""
        key_of = self.world.record.key_of
        if request_id not in key_of:
            key_of[request_id] = self.core._pending.by_id[request_id].key
