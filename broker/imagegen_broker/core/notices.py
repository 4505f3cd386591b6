"""Tells clients that follow their requests how these stand in the queue, at a cost that does not grow with it."""

from itertools import islice

from imagegen_broker.core.estimates import Pace, pace, seconds_to_start
from imagegen_broker.core.ledger import Ledger
from imagegen_broker.core.records import Request, ToClient
from imagegen_protocol.messages import Progress

EXACT_PLACES = 1000
"""Places that are counted in an interval, over all models, from the head of the queue."""
FURTHER_NOTICES = 250
"""Requests further back that are looked at in an interval, by turns."""
_NOTABLE_SECONDS = 1.0
_NOTABLE_SHARE = 0.2
"""An estimate has changed if it did by more than both of these."""


class Notices:
    """PROGRESS of QUEUED requests: when they come to the queue, and once an interval if something has changed."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._paces: dict[str | None, Pace | None] = {}
        """Looked up once an interval, as it costs a look at each worker; and when one comes or goes."""
        self._generation = 0

    def greet(self) -> None:
        """After a round of dispatch: tell those that came to the queue, and still wait, of their place at most."""
        ledger = self._ledger
        joined, ledger.joined = ledger.joined, {}
        for request in joined.values():
            ledger.followed[request.id] = request
            self._tell(request, ledger.queue.place_at_most(request))

    def tick(self) -> None:
        """Once an interval: tell the first in the queue exactly, and some of the others about."""
        ledger = self._ledger
        self._paces.clear()
        models = ledger.queue.models()
        if not ledger.followed or not models:
            return
        counted = 0
        for model in models[:EXACT_PLACES]:
            first = islice(ledger.queue.in_order(model), max(1, EXACT_PLACES // len(models)))
            for place, request in enumerate(first):
                if request.id in ledger.followed:
                    counted += 1
                    self._tell(request, place)
        for _ in range(min(FURTHER_NOTICES, len(ledger.followed) - counted)):
            request = next(iter(ledger.followed.values()))
            self._tell(request, ledger.queue.place_at_most(request))

    def _tell(self, request: Request, place: int) -> None:
        self._ledger.followed.move_to_end(request.id)
        if request.client.blocked:
            return
        is_held = self._ledger.queue.is_held(request.client.id)  # until its client acknowledges, whenever that is
        seconds = None if is_held else self._seconds(request.model, place)
        if request.told is not None and not _differs(request.told, (place, seconds)):
            return
        request.told = (place, seconds)
        message = Progress(
            request_id=request.id,
            attempt=request.attempt + 1,
            state="queued",
            place=place,
            seconds_to_start=None if seconds is None else round(seconds, 1),
        )
        self._ledger.send(ToClient(request.client.id, message))

    def _seconds(self, model: str | None, place: int) -> float | None:
        placement = self._ledger.placement
        if self._generation != placement.generation:
            self._generation = placement.generation
            self._paces.clear()
        if model not in self._paces:
            self._paces[model] = pace(placement.serving(model), self._ledger.rate.per_second)
        current = self._paces[model]
        return None if current is None else seconds_to_start(place, current)


def _differs(told: tuple[int, float | None], now: tuple[int, float | None]) -> bool:
    before, after = told[1], now[1]
    if told[0] != now[0] or before is None or after is None:
        return told != now
    return abs(after - before) > max(_NOTABLE_SECONDS, _NOTABLE_SHARE * before)
