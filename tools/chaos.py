"""A fleet of real processes under load, killed and frozen in a seeded order; counts what came back.

    python -m tools.chaos --seed 1 --minutes 3

Every image that comes back is compared with the one that its prompt and seed must give.
"""

import argparse
import json
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from imagegen_client import Client, GenerationResult, Job
from imagegen_worker.backends import Row
from imagegen_worker.backends.simulated import draw
from imagegen_worker.core.model import ResolvedRequest
from tools.fleet import Fleet

SIDE = 32
"""Pixels; the images are small, so that the fleet is what is tested."""
WORKERS = 4
WINDOW = 24
"""Requests that each client keeps on their way."""
HEARTBEAT = 0.25
QUIET_SECONDS = 120.0
_BROKER = ("--heartbeat-interval", str(HEARTBEAT), "--max-attempts", "100")
_WORKER = (
    "--backend", "simulated", "--simulated-batch-seconds", "0.05", "--simulated-image-seconds", "0.02",
)  # fmt: skip
_MADE = re.compile(r"request finished request_id=(\w+)")


@dataclass(slots=True)
class Report:
    """What happened; times in seconds."""

    seed: int
    seconds: float = 0.0
    sent: int = 0
    answered: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    wrong_images: int = 0
    unanswered: int = 0
    made: int = 0
    """Images that workers made, copies included."""
    made_again: int = 0
    """Of these, copies of one made before (its worker was killed or frozen with it)."""
    attempts: Counter[int] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    longest_seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        values = ((item.name, getattr(self, item.name)) for item in fields(self))
        return {
            name: dict(sorted(value.items())) if isinstance(value, Counter) else value for name, value in values
        }

    @property
    def good(self) -> bool:
        """Whether every request ended in its own image."""
        return self.answered == self.sent and not (self.errors or self.wrong_images or self.unanswered)


class Load:
    """One client that keeps a window of requests on their way until it is told to stop."""

    def __init__(self, endpoints: list[str], report: Report, lock: threading.Lock, first_seed: int) -> None:
        self._client = Client(endpoints)
        self._report = report
        self._lock = lock
        self._seed = first_seed
        self._jobs: list[Job] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Send no more."""
        self._stop.set()
        self._thread.join()

    def finish(self, until: float) -> None:
        """Wait for what is on its way, until a monotonic time, and leave."""
        for job in self._jobs:
            self._take(job, max(0.0, until - time.monotonic()))
        self._client.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            while len(self._jobs) < WINDOW:
                self._seed += 1
                self._jobs.append(
                    self._client.submit(f"picture {self._seed}", seed=self._seed, width=SIDE, height=SIDE)
                )
                with self._lock:
                    self._report.sent += 1
            self._stop.wait(0.01)
            waiting = []
            for job in self._jobs:
                if job.done():
                    self._take(job, 0.0)
                else:
                    waiting.append(job)
            self._jobs = waiting

    def _take(self, job: Job, timeout: float) -> None:
        try:
            error = job.exception(timeout)
        except TimeoutError:
            with self._lock:
                self._report.unanswered += 1
            return
        with self._lock:
            if error is not None:
                self._report.errors[getattr(error, "code", type(error).__name__)] += 1
                return
            result = job.result()
            self._report.answered += 1
            self._report.attempts[result.attempt] += 1
            self._report.longest_seconds = max(self._report.longest_seconds, result.total_seconds)
            self._report.wrong_images += not is_right(result)


def is_right(result: GenerationResult) -> bool:
    """Say whether an image is the one that its prompt, seed and worker must give."""
    request = ResolvedRequest(
        model=result.model,
        prompt=f"picture {result.seed}",
        negative_prompt=None,
        seeds=(result.seed,),
        num_inference_steps=1,
        guidance_scale=None,
        width=SIDE,
        height=SIDE,
    )
    return draw(Row(request, result.seed), result.worker).tobytes() == result.image.tobytes()


class Chaos:
    """The faults, one after the other, in the order that the seed gives."""

    def __init__(self, fleet: Fleet, report: Report) -> None:
        self._fleet = fleet
        self._report = report
        self._random = random.Random(report.seed)
        self._due: list[tuple[float, Callable[[], None]]] = []
        self._busy: set[str] = set()

    def run(self, seconds: float) -> None:
        """Make trouble for so long; then let everybody live."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._settle(time.monotonic())
            self._strike()
            threading.Event().wait(self._random.uniform(0.1, 1.2))
        self._settle(float("inf"))

    def _settle(self, now: float) -> None:
        """Start again, or thaw, what is due."""
        due = [what for when, what in self._due if when <= now]
        self._due = [(when, what) for when, what in self._due if when > now]
        for what in due:
            what()

    def _strike(self) -> None:
        victims = [name for name in self._fleet.processes if name not in self._busy]
        brokers = [name for name in victims if name.startswith("broker")]
        workers = [name for name in victims if name.startswith("worker")]
        kind = self._random.choice(("kill worker", "freeze worker", "kill worker", "kill broker", "freeze broker"))
        pool = brokers if kind.endswith("broker") else workers
        if not pool:
            return
        name = self._random.choice(pool)
        pause = self._random.uniform(0.0, 8 * HEARTBEAT)
        self._busy.add(name)
        self._report.faults[kind] += 1
        if kind.startswith("freeze"):
            process = self._fleet.processes[name]
            process.send_signal(signal.SIGSTOP)
            self._later(name, pause, lambda: process.send_signal(signal.SIGCONT))
            return
        self._fleet.kill(name)
        start = self._start_broker if name in brokers else self._start_worker
        self._later(name, pause, lambda: start(name))

    def _later(self, name: str, pause: float, what: Callable[[], None]) -> None:
        def mend() -> None:
            what()
            self._busy.discard(name)

        self._due.append((time.monotonic() + pause, mend))

    def _start_broker(self, name: str) -> None:
        self._fleet.start_broker(*_BROKER, name=name)

    def _start_worker(self, name: str) -> None:
        self._fleet.start_worker(name, *_WORKER)


def run(seed: int, seconds: float, folder: Path, *, brokers: int = 2, clients: int = 3) -> Report:
    """Run one chaos of so many seconds; logs go into `folder`."""
    report = Report(seed)
    lock = threading.Lock()
    begun = time.monotonic()
    with Fleet(log_folder=folder) as fleet:
        endpoints = [fleet.start_broker(*_BROKER, name=f"broker{index}").frontend for index in range(brokers)]
        for index in range(WORKERS):
            fleet.start_worker(f"worker{index}", *_WORKER)
        with Client(endpoints[0]) as client:
            fleet.wait_for_workers(client, WORKERS)
        # Each client prefers another broker.
        loads = [
            Load(
                endpoints[index % brokers :] + endpoints[: index % brokers], report, lock, 1_000_000 * (index + 1)
            )
            for index in range(clients)
        ]
        Chaos(fleet, report).run(seconds)
        for load in loads:
            load.stop()
        until = time.monotonic() + QUIET_SECONDS
        for load in loads:
            load.finish(until)
        report.seconds = round(time.monotonic() - begun, 1)
    made = Counter(_MADE.findall("".join(path.read_text() for path in folder.glob("worker*.log"))))
    report.made = made.total()
    report.made_again = sum(count - 1 for count in made.values())
    return report


def main() -> int:
    """Run, print the count as JSON, and return 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--brokers", type=int, default=2)
    parser.add_argument("--logs", type=Path, help="folder for the logs; a temporary one if left out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.logs or Path(temporary)
        report = run(arguments.seed, arguments.minutes * 60, folder, brokers=arguments.brokers)
    print(json.dumps(report.as_dict(), indent=2))
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
