"""Looks at the fleet again and again, and remembers as much as the picture needs."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future

from imagegen_client.fleet import Broker, Look, images_per_second
from imagegen_client.sync import Client
from imagegen_protocol import BrokerUnreachableError
from imagegen_protocol.statistics import Statistics

RATE_SECONDS = 10.0
"""Over how long the images a second are counted: batches end in bursts, and totals come with heartbeats."""
TREND_LENGTH = 60
"""Looks."""


class Watch:
    """The brokers, each asked by a client of its own; `brokers`: endpoint to client."""

    def __init__(self, brokers: Mapping[str, Client], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._clients = brokers
        self._heard = dict.fromkeys(brokers, clock())
        self._said = {endpoint: Broker(endpoint, None, 0.0) for endpoint in brokers}
        self._looks: deque[Look] = deque()
        self.trends: dict[str, deque[float]] = {}
        """The images a second of each worker at the last looks."""

    @property
    def now(self) -> Look:
        """The last look."""
        return self._looks[-1]

    @property
    def before(self) -> Look | None:
        """The look to compare it with: about `RATE_SECONDS` earlier, where there is one."""
        return self._looks[0] if len(self._looks) > 1 else None

    def ask(self, patience: float) -> dict[str, Future[Statistics]]:
        """Ask all brokers; the answers, for `take`, are there after `patience` seconds at the latest."""
        return {endpoint: client.request_stats(patience) for endpoint, client in self._clients.items()}

    def take(self, answers: Mapping[str, Future[Statistics]]) -> None:
        """Make a look of the answers that are there; a broker without one is lost.

        Raises the `ImagegenError` of a broker that refuses us.
        """
        now = self._clock()
        for endpoint, answer in answers.items():
            if answer.done() and not isinstance(answer.exception(), BrokerUnreachableError):
                self._said[endpoint] = Broker(endpoint, answer.result())
                self._heard[endpoint] = now
            else:
                lost_for = now - self._heard[endpoint]
                self._said[endpoint] = Broker(endpoint, self._said[endpoint].statistics, lost_for)
        self._remember(Look(now, tuple(self._said.values())))

    def _remember(self, look: Look) -> None:
        self._looks.append(look)
        while len(self._looks) > 2 and look.at - self._looks[0].at > RATE_SECONDS:
            self._looks.popleft()
        there, unheard = look.workers(), look.unheard()
        for name, rate in images_per_second(self.before, look).items():
            if name not in unheard:
                self.trends.setdefault(name, deque(maxlen=TREND_LENGTH)).append(rate)
        for name in self.trends.keys() - there.keys():
            del self.trends[name]
