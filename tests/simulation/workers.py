"""A simulated worker process: the real core, and a device that is slow, hangs, fails or crashes."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from imagegen_protocol.messages import BrokerHeartbeat, Chunk, Fetch, ImageInfo, Ready, Work, WorkerHeartbeat
from imagegen_worker.core import events as ev
from imagegen_worker.core.capabilities import TaskCapabilities
from imagegen_worker.core.held_requests import HeldLimits
from imagegen_worker.core.model import Model, Task
from imagegen_worker.core.state import WorkerIdentity, WorkerLimits
from imagegen_worker.core.worker import WorkerCore
from tests.simulation import invariants
from tests.simulation.network import Link
from tests.simulation.peers import Peer
from tests.simulation.receiving import Receiving

if TYPE_CHECKING:
    from tests.simulation.world import World

STEPS = 2
DECODE_SECONDS = 0.01
TASKS: dict[Task, TaskCapabilities] = {
    "text-to-image": TaskCapabilities(),
    "image-to-image": TaskCapabilities(strength=0.8),
}
MODELS = {
    name: Model(name=name, num_inference_steps=4, guidance_scale=1.0, width=64, height=64, tasks=TASKS)
    for name in "mn"
}


def images_of(name: str, request_id: bytes, count: int, size: int) -> tuple[bytes, ...]:
    """Return the images that a worker generates for a request; other workers generate other bytes."""
    rng = random.Random(f"{name} {request_id.hex()}")
    return tuple(rng.randbytes(max(size, 4)) for _ in range(count))


class WorkerPeer(Peer):
    """One run of a worker process."""

    def __init__(self, world: "World", index: int) -> None:
        super().__init__(world, f"worker {index}.{world.runs(f'worker {index}')}")
        plan, rng = world.plan, world.rng
        self.index = index
        self.started = world.now
        self.hung_until = 0.0
        self.capacity = 2 * plan.batch
        self.core = WorkerCore(
            WorkerIdentity(
                worker_id=rng.randbytes(16),
                name=f"worker-{index}",
                host="h",
                gpu_id=index,
                backend="simulation",
                capacity=self.capacity,
                max_batch_size=plan.batch,
                batching="static",
                pid=1,
            ),
            brokers=plan.brokers,
            limits=WorkerLimits(
                held=HeldLimits(seconds=plan.held_seconds, count=plan.held_count),
                orphan_seconds=15.0,
                drain_seconds=8.0,
                step_timeout=2 * plan.step_timeout if plan.hung_exit and plan.step_timeout else None,
            ),
            now=self.local(),
        )
        self.links = [world.network.dial(self, f"broker {number}") for number in range(plan.brokers)]
        self._link_numbers = {link: number for number, link in enumerate(self.links)}
        self.receiving = Receiving(self)
        self._speed = rng.uniform(0.5, 2.0)
        self._jobs: list[ev.Job] = []
        self._batch: list[ev.Job] = []
        self._over: set[int] = set()
        self._busy = False
        self.alone: set[bytes] = set()
        """Ids of the requests that it must run alone."""
        names = "mn" if plan.swaps or (plan.two_models and index == 0) else "m"
        self._warm = ["m"] if plan.swaps else []
        models = tuple(MODELS[name] for name in names)
        world.after(rng.uniform(0.01, 0.3), self.when_awake, self._handle, ev.EngineReady(models, "cpu", None))

    # ---- the main thread --------------------------------------------------------------------------------

    def receive(self, link: Link, message: Any, frames: Sequence[Any]) -> None:
        self.when_awake(self._process, link, message, frames)

    def _process(self, link: Link, message: Any, frames: Sequence[Any]) -> None:
        if link not in self._link_numbers:
            return  # its socket is closed
        if self.world.recording:
            self.world.log_message(f"{link.name} -> {self.name}", message)
        if not isinstance(message, BrokerHeartbeat):
            self.world.released_on_arrival(self, message)
        if isinstance(message, Work) and message.alone and self.core.held.get(message.request_id) is None:
            self.alone.add(message.request_id)
        if isinstance(message, Chunk):
            self.receiving.on_chunk(link, message, frames)
        self._handle(ev.Received(self._link_numbers[link], message, tuple(frames)))
        self.receiving.keep_only(self.core.held.queued)
        invariants.after_worker_message(self.world, self)

    def _handle(self, event: Any) -> None:
        self._execute(self.core.handle(event, self.local()))

    def tick(self) -> None:
        self._handle(ev.Tick())

    def next_deadline(self) -> float | None:
        return self.core.next_deadline()

    def drain(self) -> None:
        """Drain the worker, as SIGTERM does."""
        self._handle(ev.DrainRequested("the simulation"))

    def _execute(self, actions: list[Any]) -> None:
        for action in actions:
            match action:
                case ev.Send(broker, message, frames):
                    if isinstance(message, Ready | WorkerHeartbeat):
                        message = msgspec.structs.replace(message, warm=self._warm)
                    if isinstance(message, Fetch):
                        self.receiving.on_fetch(self.links[broker], message)
                    self.world.network.send_up(self.links[broker], message, frames)
                case ev.Decode(number, request, model, inputs):
                    held = self.core.held.by_number(number)
                    invariants.on_inputs(self.world, self, held.id, inputs)
                    decoded = ev.Decoded(number, model.resolve(request, (64, 64)))
                    self.world.after(DECODE_SECONDS, self.when_awake, self._handle, decoded)
                case ev.Job():
                    self._jobs.append(action)
                case ev.Reconnect(broker):
                    self._reconnect(broker)
                case ev.Cancel(number):
                    self._jobs = [job for job in self._jobs if job.number != number]
                    self._over.add(number)
                case ev.Exit(status):
                    self.world.log(f"{self.name} exits with {status}")
                    self.kill(silently=False)
                    self.world.start_worker_later(self.index, 1.0)
                    return
                case ev.LogEvent(text="answer dropped", fields=fields) if fields["reason"] == "too many":
                    self.world.record.evicted.add(bytes.fromhex(fields["request_id"]))
                case ev.LogEvent(text="answer dropped", fields=fields) if fields["reason"] == "expired":
                    invariants.on_answer_expired(self.world, self, bytes.fromhex(fields["request_id"]))
                case ev.LogEvent() if self.world.recording:
                    about = action.fields.get("request_id")
                    key = None if about is None else bytes.fromhex(str(about))
                    self.world.log(f"{self.name}: {action.text} {action.fields}", key)
        self.arm(self.core.next_deadline())
        if self._jobs and not self._busy:
            self._busy = True
            self.world.after(0.003, self._begin)

    def _reconnect(self, broker: int) -> None:
        """Open a new connection to a broker."""
        old = self.links[broker]
        invariants.on_reconnect(self.world, self, old)
        self.world.log(f"{self.name} dials {old.name} again")
        self.world.network.close(old)
        self.links[broker] = self.world.network.dial(self, old.name)
        self._link_numbers = {each: number for number, each in enumerate(self.links)}

    def kill(self, *, silently: bool) -> None:
        """Kill the process; `silently`: with its host, so that its connections are not closed."""
        self.alive = False
        self._inbox.clear()
        for link in self.links:
            self.world.network.close(link, silently=silently)

    # ---- the device -------------------------------------------------------------------------------------

    def _device(self, what: Any) -> None:
        """Call `what` on the device when neither the process is frozen nor the device hangs."""
        if not self.alive:
            return
        blocked = max(self.frozen_until, self.hung_until)
        if blocked > self.world.now:
            self.world.at(blocked, self._device, what)
        else:
            what()

    def _begin(self) -> None:
        if self.frozen:
            self.world.at(self.frozen_until, self._begin)
            return
        if not self.alive:
            return
        plan = self.world.plan
        if not self._jobs:
            self._busy = False
            return
        alike = [job for job in self._jobs if not plan.swaps or job.request.model == self._jobs[0].request.model]
        self._batch = alike[: plan.batch]
        self._jobs = [job for job in self._jobs if job not in self._batch]
        loading = plan.load_seconds * self._load(self._batch[0].request.model)
        begun = [self.core.held.by_number(job.number) for job in self._batch]
        invariants.on_batch(self, [held.id for held in begun if held is not None])
        for held in begun:
            invariants.on_started(self.world, self, held)
        self._handle(ev.Started(tuple(job.number for job in self._batch)))
        if not self.alive:
            return
        seconds = loading + self._speed * (plan.batch_seconds + plan.image_seconds * len(self._batch))
        if any(job.request.prompt == "poison" for job in self._batch):
            self.world.after(self.world.rng.uniform(0.05, 1.0) * seconds + 0.03, self._device, self._poisoned)
            seconds += 1e9
        self.world.after(seconds / STEPS, self._device, lambda: self._step(1, seconds / STEPS))

    def _load(self, model: str) -> bool:
        """Load a model, which replaces the other one; return whether it was not loaded before."""
        if not self._warm or model in self._warm:
            return False
        self._warm = [model]
        return True

    def _step(self, step: int, pause: float) -> None:
        unfinished_jobs = tuple(job.number for job in self._batch if job.number not in self._over)
        if step == STEPS or not unfinished_jobs:
            self._end()
            return
        self._handle(ev.Stepped(unfinished_jobs, step, STEPS))
        self.world.after(pause, self._device, lambda: self._step(step + 1, pause))

    def _poisoned(self) -> None:
        if any(job.request.prompt == "poison" and job.number not in self._over for job in self._batch):
            self.world.kill_worker(self, 0.5, silently=False, why="by a poisonous prompt")
        else:
            self._end()

    def _make(self, request_id: bytes) -> tuple[bytes, ...]:
        submission = self.world.record.submission_of(request_id)
        return (
            images_of(self.name, request_id, submission.images, submission.image_bytes)
            if submission is not None
            else (b"image",)
        )

    def _end(self) -> None:
        batch, self._batch = self._batch, []
        for job in batch:
            if not self.alive or job.number in self._over:
                continue
            prompt = job.request.prompt
            if prompt == "big":
                self._handle(ev.Failed(job.number, "out_of_memory", "does not fit"))
            elif prompt == "bad":
                self._handle(ev.Failed(job.number, "generation_failed", "the pipeline raised"))
            else:
                held = self.core.held.by_number(job.number)
                if held is not None:
                    images = self._make(held.id)
                    invariants.on_generated(self.world, self, held.id, images)
                    self._handle(finished(job, images, len(batch)))
        self._over.clear()
        done = ev.CallDone(requests=len(batch), images=len(batch), steps=4, seconds=0.1, seconds_per_image=None)
        self._handle(done)
        self._handle(ev.Idle())
        self._busy = bool(self._jobs)
        if self._busy:
            self.world.after(0.003, self._begin)


def finished(job: ev.Job, images: tuple[bytes, ...], batch_size: int) -> ev.Finished:
    """Return the event for a finished job."""
    seeds = job.request.seeds
    return ev.Finished(
        number=job.number,
        images=images,
        infos=tuple(ImageInfo(format="png", width=64, height=64, seed=seed) for seed in seeds),
        batch_size=batch_size,
        queue_seconds=0.0,
        generation_seconds=0.1,
        encode_seconds=0.0,
    )
