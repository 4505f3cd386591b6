"""Plans of simulated fleets: size, load and faults, all derived from a seed before the run."""

import random
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from tests.simulation.speed import FAST, Speed

if TYPE_CHECKING:
    from tests.simulation.peers import Peer

FAULTS_END = 22.0
"""Seconds after which no fault is injected."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault: `kind` is its name in `faults.FAULTS`, `who` selects the process, `seconds` is the duration."""

    kind: str
    at: float
    target: int
    seconds: float
    variant: int = 0

    def __str__(self) -> str:
        return (
            f"{self.kind} at {self.at:.2f} s, target {self.target}, {self.seconds:.2f} s, variant {self.variant}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Size, load and faults of a fleet. Times in simulated seconds."""

    seed: int
    theme: str
    brokers: int = 1
    workers: int = 3
    clients: int = 2
    requests: int = 100
    strategy: str = "round-robin"
    two_models: bool = False
    """Worker 0 serves `m` and `n`, the others `m` alone."""
    swaps: bool = False
    """All workers serve both models, with memory for one; a swap takes `load_seconds`."""
    load_seconds: float = 0.5
    skew: bool = False
    """Each process has a clock with a speed of 0.97 to 1.03."""
    batch: int = 2
    batch_seconds: float = 0.15
    image_seconds: float = 0.05
    step_timeout: float | None = None
    """The step timeout of brokers; that of workers is twice as long, if `hung_exit` is set."""
    hung_exit: bool = False
    max_requests: int = 10_000
    max_requests_per_client: int = 5_000
    max_unacknowledged_per_client: int = 4096
    max_bytes: int = 1 << 30
    max_bytes_per_client: int = 1 << 28
    retry_overloaded: bool = False
    max_recent_ids: int = 20_000
    held_count: int = 1024
    cancel_share: float = 0.0
    timeout_share: float = 0.0
    priority_share: float = 0.0
    progress_share: float = 0.0
    failing_share: float = 0.0
    poison: int = 0
    burst: int = 4
    client_speed: Speed = FAST
    """The links of the first `slow_clients` clients; all others are fast."""
    worker_speed: Speed = FAST
    """The links of the first `slow_workers` workers."""
    slow_clients: int = 0
    slow_workers: int = 0
    duplicates: float = 0.0
    """Share of the messages that are delivered twice."""
    answer_bytes: tuple[int, ...] = (30,)
    """Sizes of images, from which each request gets one at random."""
    input_bytes: tuple[int, ...] = (30,)
    """Sizes of input images."""
    input_share: float = 0.0
    """Share of the requests that have an input image."""
    fetch_window_bytes: int = 128 * 1024
    max_transfer_bytes: int = 1 << 20
    held_seconds: float = 20.0
    """Age at which a worker drops an answer: its acknowledgement may be lost with a broker."""
    faults: tuple[Fault, ...] = ()

    def speed_of(self, dialer: "Peer") -> Speed:
        """Return the speed of the links of a process."""
        if dialer.is_client:
            return self.client_speed if dialer.index < self.slow_clients else FAST
        return self.worker_speed if dialer.index < self.slow_workers else FAST

    @property
    def is_healthy(self) -> bool:
        """Whether the plan has no faults: links may be slow but lose nothing."""
        return not self.faults and not self.poison and not self.duplicates

    def __str__(self) -> str:
        shape = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.name != "faults")
        return "\n".join([f"plan: {shape}", *(f"plan: {fault}" for fault in self.faults)])


ThemeFunction = Callable[[random.Random], dict[str, object]]


def random_faults(rng: random.Random, kinds: dict[str, tuple[float, float]], count: int) -> tuple[Fault, ...]:
    """Return random faults of these kinds; `kinds` has the range of seconds of each."""
    drawn = []
    for _ in range(count):
        kind = rng.choice(sorted(kinds))
        seconds = rng.uniform(*kinds[kind])
        at = rng.uniform(1.0, max(1.5, FAULTS_END - seconds))
        drawn.append(Fault(kind, at, rng.randrange(64), seconds, rng.randrange(64)))
    return tuple(sorted(drawn, key=lambda fault: fault.at))


CRASHES = {
    "kill_broker": (0.1, 6.0),
    "kill_worker": (0.2, 5.0),
    "unplug_worker": (0.2, 5.0),
    "kill_client": (0.2, 4.0),
    "close_client": (0.2, 4.0),
}
NETWORK = {
    "cut": (0.3, 10.0),
    "lose": (1.0, 8.0),
    "reconnect": (0.1, 0.2),
}
FREEZES = {
    "freeze_broker": (0.3, 9.0),
    "freeze_worker": (0.3, 9.0),
    "freeze_client": (0.3, 9.0),
    "hang_device": (0.5, 9.0),
}
SLOW_READERS = {"slow_client": (2.0, 8.0)}
NO_ACKS = {"omit_acks": (8.0, 20.0)}
GREEDY = {"greedy_client": (3.0, 12.0)}
ROLLING = {"drain_worker": (0.1, 0.2), "drain_all_workers": (0.1, 0.2)}


def no_faults(rng: random.Random) -> dict[str, object]:
    """No faults: every image is generated once."""
    return {"progress_share": 0.2, "priority_share": rng.choice([0.0, 0.3])}


def rolling_restart(rng: random.Random) -> dict[str, object]:
    """Rolling restart of brokers and workers, as in an upgrade; no request may be affected."""
    brokers = rng.randint(1, 2)
    workers = rng.randint(2, 4)
    steps = [("drain_worker", index) for index in range(workers)]
    steps += [("kill_broker", index) for index in range(brokers)]
    rng.shuffle(steps)
    times = [2.0 + 3.2 * number for number in range(len(steps))]
    return {
        "brokers": brokers,
        "workers": workers,
        "two_models": rng.random() < 0.4,
        "faults": tuple(
            Fault(kind, at, who, rng.uniform(0.1, 3.0)) for at, (kind, who) in zip(times, steps, strict=True)
        ),
    }


def crashes(rng: random.Random) -> dict[str, object]:
    """Processes are killed and restarted, concurrently with cancels and deadlines."""
    return {
        "faults": random_faults(rng, CRASHES, rng.randint(1, 7)),
        "cancel_share": rng.choice([0.0, 0.2]),
        "timeout_share": rng.choice([0.0, 0.3]),
    }


def network(rng: random.Random) -> dict[str, object]:
    """Links are cut, lose messages, and reconnect."""
    return {"faults": random_faults(rng, NETWORK, rng.randint(1, 8)), "cancel_share": rng.choice([0.0, 0.2])}


def freezes(rng: random.Random) -> dict[str, object]:
    """Processes freeze and resume, and devices hang."""
    return {
        "faults": random_faults(rng, FREEZES, rng.randint(1, 6)),
        "step_timeout": rng.choice([None, 2.0, 3.0]),
        "hung_exit": rng.random() < 0.3,
    }


def overload(rng: random.Random) -> dict[str, object]:
    """Small queues, large bursts, and clients that read slowly."""
    small: dict[str, object] = {
        "max_requests": rng.choice([12, 30]),
        "max_requests_per_client": rng.choice([8, 20]),
        "max_bytes": rng.choice([300, 1 << 30]),
        "max_bytes_per_client": rng.choice([150, 1 << 28]),
    }
    return {
        **(small if rng.random() < 0.6 else {}),
        "retry_overloaded": rng.random() < 0.7,
        "clients": rng.randint(2, 5),
        "burst": rng.choice([10, 25, 60]),
        "requests": rng.choice([120, 200, 300]),
        "timeout_share": 0.3,
        "max_recent_ids": rng.choice([5, 20_000]),
        "priority_share": rng.choice([0.0, 0.2]),
        "faults": random_faults(rng, SLOW_READERS, rng.randint(0, 3)),
    }


def no_acks(rng: random.Random) -> dict[str, object]:
    """Some clients acknowledge nothing or request too much, besides correct ones."""
    return {
        "answer_bytes": rng.choice([(30,), (30, 60_000), (60_000,)]),
        "fetch_window_bytes": 65_536,
        "clients": rng.randint(2, 4),
        "requests": rng.choice([120, 200]),
        "burst": rng.choice([12, 40]),
        "max_unacknowledged_per_client": rng.choice([3, 8, 20, 4096]),
        "held_count": rng.choice([3, 8, 1024]),
        "progress_share": 0.2,
        "priority_share": rng.choice([0.0, 0.2]),
        "faults": random_faults(rng, {**NO_ACKS, **GREEDY}, rng.randint(1, 3)),
    }


SLOWEST = 9_500
"""Bytes per second of the slowest links: an inline answer takes one interval less than the liveness time."""


def random_links(rng: random.Random, seconds: float) -> dict[str, object]:
    """Return random slow links for some clients or workers; the largest images take `seconds` on the slowest."""
    rates = [SLOWEST * rng.choice([1.0, 1.0, 1.5, 3.0, 6.0]) for _ in range(4)]
    latency = rng.choice([0.0, 0.05, 0.2])
    clients, workers = rng.choice([(1, 0), (2, 0), (8, 0), (0, 1), (0, 1), (0, 8), (1, 1), (8, 8)])
    largest = int(seconds * min(rates))
    sizes = (30, 3_000, 12_000, 45_000, largest // 4, largest)
    return {
        "client_speed": Speed(up=rates[0], down=rates[1], latency=latency),
        "worker_speed": Speed(up=rates[2], down=rates[3], latency=latency),
        "slow_clients": clients,
        "slow_workers": workers,
        "answer_bytes": sizes,
        "input_bytes": sizes[1:],
        "input_share": rng.choice([0.0, 0.2, 0.4]),
        "fetch_window_bytes": rng.choice([65_536, 131_072, 1 << 20]),
        "held_seconds": 150.0,
    }


def slow_links(rng: random.Random) -> dict[str, object]:
    """Healthy links that need up to 10 s for an image."""
    return {
        **random_links(rng, 10.0),
        "workers": rng.randint(2, 4),
        "clients": rng.randint(2, 4),
        "requests": rng.choice([12, 24]),
        "burst": rng.choice([1, 2, 4]),
        "progress_share": 0.3,
        "cancel_share": rng.choice([0.0, 0.2]),
    }


def interrupted_transfers(rng: random.Random) -> dict[str, object]:
    """Transfers over slow links are interrupted: processes are killed, and links are cut or lose messages."""
    return {
        **random_links(rng, rng.choice([2.0, 5.0])),
        "clients": rng.randint(2, 4),
        "requests": rng.choice([20, 40]),
        "burst": rng.choice([1, 2, 4]),
        "duplicates": rng.choice([0.0, 0.0, 0.05]),
        "timeout_share": rng.choice([0.0, 0.2]),
        "faults": random_faults(rng, {**CRASHES, **NETWORK, **FREEZES, **GREEDY}, rng.randint(1, 6)),
    }


def shared_link(rng: random.Random) -> dict[str, object]:
    """All clients fetch answers over the slow link of one worker; nothing is wrong with it.

    Even the smallest windows of so many clients add up: the answer to a FETCH takes longer than the liveness time.
    """
    return {
        "brokers": 1,
        "workers": 1,
        "clients": rng.randint(8, 12),
        "requests": 32,
        "burst": 4,
        "two_models": False,
        "worker_speed": Speed(up=SLOWEST, down=SLOWEST),
        "slow_workers": 1,
        "answer_bytes": (30_000, 45_000),
        "input_share": 0.0,
        "fetch_window_bytes": 65_536,
        "held_seconds": 600.0,
    }


def poison(rng: random.Random) -> dict[str, object]:
    """Some requests kill their worker; others fail or do not fit into memory."""
    return {
        "poison": rng.randint(1, 3),
        "failing_share": 0.1,
        "workers": rng.randint(3, 5),
        "faults": random_faults(rng, CRASHES, rng.choice([0, 0, 2])),
    }


def all_faults(rng: random.Random) -> dict[str, object]:
    """All kinds of faults together."""
    kinds = {**CRASHES, **NETWORK, **FREEZES, **SLOW_READERS, **NO_ACKS, **GREEDY, **ROLLING}
    return {
        "brokers": rng.randint(1, 3),
        "workers": rng.randint(2, 5),
        "clients": rng.randint(2, 4),
        "faults": random_faults(rng, kinds, rng.randint(4, 14)),
        "poison": rng.choice([0, 0, 1]),
        "failing_share": rng.choice([0.0, 0.05]),
        "cancel_share": 0.1,
        "timeout_share": 0.15,
        "priority_share": 0.1,
        "progress_share": 0.1,
        "step_timeout": rng.choice([None, 3.0]),
        "hung_exit": rng.random() < 0.3,
        "held_count": rng.choice([8, 1024]),
        "max_requests": rng.choice([40, 10_000]),
        "retry_overloaded": True,
        "held_seconds": 60.0,
        "answer_bytes": (30, 30, 30_000, 100_000),
        "input_bytes": (30, 50_000),
        "input_share": rng.choice([0.0, 0.1]),
        "client_speed": Speed(up=100_000, down=100_000, latency=0.05),
        "worker_speed": Speed(up=200_000, down=200_000),
        "slow_clients": rng.choice([0, 1]),
        "slow_workers": rng.choice([0, 1]),
        "duplicates": rng.choice([0.0, 0.0, 0.02]),
    }


ONLY_BY_NAME = 0
"""Weight of a theme that is used only if it is named."""
THEMES: dict[str, tuple[int, ThemeFunction]] = {
    "no_faults": (2, no_faults),
    "rolling_restart": (2, rolling_restart),
    "crashes": (4, crashes),
    "network": (4, network),
    "freezes": (4, freezes),
    "overload": (3, overload),
    "no_acks": (2, no_acks),
    "poison": (2, poison),
    "slow_links": (3, slow_links),
    "shared_link": (ONLY_BY_NAME, shared_link),
    "interrupted_transfers": (3, interrupted_transfers),
    "all_faults": (4, all_faults),
}


def make_plan(seed: int, theme: str | None = None) -> Plan:
    """Return the plan of a seed; `theme`: of this theme, whichever the seed would draw."""
    rng = random.Random(seed)
    names = [name for name, (weight, _) in THEMES.items() for _ in range(weight)]
    drawn = rng.choice(names)
    theme = theme or drawn
    shape: dict[str, object] = {
        "brokers": rng.choice([1, 1, 2]),
        "workers": rng.randint(1, 4),
        "clients": rng.randint(1, 3),
        "requests": rng.choice([40, 80, 120, 160]),
        "strategy": rng.choice(["round-robin", "queue-depth", "least-wait"]),
        "two_models": rng.random() < 0.2,
        "skew": rng.random() < 0.5,
        "batch": rng.randint(1, 4),
        "batch_seconds": rng.uniform(0.05, 0.4),
        "image_seconds": rng.uniform(0.01, 0.1),
        "burst": rng.choice([1, 4, 12, 40]),
        "answer_bytes": rng.choice([(30,), (30,), (30, 30, 30, 20_000, 60_000)]),
        "input_bytes": (30, 30_000),
        "input_share": rng.choice([0.0, 0.0, 0.1]),
    }
    shape.update(THEMES[theme][1](rng))
    if "max_bytes" in shape:
        shape["input_share"] = 0.0  # the broker holds a few small requests only
    shape["swaps"] = bool(shape["two_models"]) and rng.random() < 0.5
    return Plan(seed=seed, theme=theme, **shape)  # type: ignore[arg-type]
