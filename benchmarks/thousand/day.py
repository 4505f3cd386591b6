"""What a day brings: traffic that follows the hours and comes in bursts, deaths, and a rollout."""

import random
from dataclasses import dataclass, field
from math import cos, pi

DAY = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """A fleet and its day. Times in seconds; `load` is the mean of what is asked for, over what can be made."""

    hosts: int = 125
    gpus: int = 8
    """Of a host."""
    seconds: float = DAY
    load: float = 0.6
    swing: float = 0.5
    """The afternoon's rate is this much above the mean, the night's as much below."""
    bursts: int = 24
    """In the day, by one client each, beside what the others ask for."""
    burst_seconds: float = 60.0
    """The work of a burst, in seconds of the whole fleet."""
    clients: int = 200
    batch_seconds: float = 160.0
    image_seconds: float = 80.0
    heartbeat_seconds: float = 60.0
    worker_deaths: int = 50
    """Processes that are killed, and started again a minute later."""
    host_deaths: int = 3
    """Hosts that are lost with all their workers, for half an hour."""
    rollout_at: float = 0.6
    """When the workers are drained and started anew, host by host; as a share of the day."""
    strategy: str = "least-wait"
    seed: int = 1
    speeds: tuple[float, ...] = field(default=(1.0, 1.0, 1.0, 1.6))
    """Of the hosts' cards, in turn: times that everything takes."""

    @property
    def workers(self) -> int:
        """How many there are."""
        return self.hosts * self.gpus

    def per_second(self) -> float:
        """Return the requests a second that all workers make in full batches."""
        slow = [self.speeds[host % len(self.speeds)] for host in range(self.hosts)]
        full = self.batch_seconds / 8 + self.image_seconds
        return sum(self.gpus / (each * full) for each in slow)

    def arrivals(self) -> list[tuple[float, int]]:
        """Return when requests come, and from which client, in order; some ask for far more than others."""
        dice = random.Random(self.seed)
        weights = [1 / (1 + number) ** 0.7 for number in range(self.clients)]
        in_bursts = int(self.burst_seconds * self.per_second())
        mean = max(0.0, self.load * self.per_second() - self.bursts * in_bursts / self.seconds)
        came: list[tuple[float, int]] = []
        now, most = 0.0, mean * (1 + self.swing)
        while most and (now := now + dice.expovariate(most)) < self.seconds:
            rate = mean * (1 - self.swing * cos(2 * pi * now / self.seconds))
            if dice.random() * most < rate:
                came.append((now, dice.choices(range(self.clients), weights)[0]))
        for _ in range(self.bursts):
            at, client = dice.uniform(0.0, self.seconds), dice.randrange(self.clients)
            came += [(at, client)] * in_bursts
        return sorted(came)
