"""`Outbox`: the actions of the core, with small messages to the same peer combined."""

from collections import defaultdict
from collections.abc import Iterable

from imagegen_broker.core.events import Action, LogEvent, SendToClient, SendToWorker
from imagegen_protocol.limits import MAX_IDS_PER_MESSAGE
from imagegen_protocol.messages import Accepted, Release, Resend

_Ids = defaultdict[bytes, dict[bytes, None]]
"""Ordered sets of request ids, by peer."""


class Outbox:
    """Collects actions until `take`.

    RELEASE and RESEND are combined per worker in each flush. ACCEPTED, which an answer makes unnecessary, and the
    RELEASE of an acknowledged answer, which is not urgent, wait up to `join_seconds` for more of their kind.
    """

    def __init__(self, join_seconds: float) -> None:
        self._join_seconds = join_seconds
        self._actions: list[Action] = []
        self._releases: _Ids = defaultdict(dict)
        self._resends: _Ids = defaultdict(dict)
        self._accepted: _Ids = defaultdict(dict)
        self._late_releases: _Ids = defaultdict(dict)
        self.deadline: float | None = None
        """Time at which the waiting ACCEPTED and RELEASE are sent; None if there are none."""

    def add(self, action: Action) -> None:
        """Add an action that is not combined with others."""
        self._actions.append(action)

    def log(self, level: int, text: str, **fields: object) -> None:
        """Write a log line."""
        self._actions.append(LogEvent(level, text, fields))

    def accept(self, client_id: bytes, request_id: bytes) -> None:
        """Send ACCEPTED within `join_seconds`, unless the request is answered before."""
        self._accepted[client_id][request_id] = None

    def answer(self, action: SendToClient) -> None:
        """Send the terminal answer to a request."""
        if action.answered_id is not None and (accepted := self._accepted.get(action.client_id)) is not None:
            accepted.pop(action.answered_id, None)
        self._actions.append(action)

    def release(self, worker_id: bytes, request_id: bytes, *, urgent: bool = True) -> None:
        """Send RELEASE with the next flush, or within `join_seconds` if it is not urgent."""
        if not urgent:
            self._late_releases[worker_id][request_id] = None
        elif request_id not in self._late_releases.get(worker_id, ()):
            self._releases[worker_id][request_id] = None

    def resend(self, worker_id: bytes, request_id: bytes) -> None:
        """Send RESEND to a worker with the next flush."""
        self._resends[worker_id][request_id] = None

    def discard_client(self, client_id: bytes) -> None:
        """Drop the queued messages to a client that has left."""
        self._accepted.pop(client_id, None)

    def discard_worker(self, worker_id: bytes) -> None:
        """Drop the queued messages to a worker that has left."""
        for waiting in (self._releases, self._resends, self._late_releases):
            waiting.pop(worker_id, None)

    def flush(self, now: float) -> None:
        """Turn combined messages that are due into actions."""
        if self._releases:
            self._send_to_workers(self._releases, Release)
        if self._resends:
            self._send_to_workers(self._resends, Resend)
        if not self._accepted and not self._late_releases:
            self.deadline = None  # their peers have left
            return
        if self.deadline is None:
            self.deadline = now + self._join_seconds
        if now >= self.deadline:
            self.deadline = None
            for client_id, accepted in self._accepted.items():
                self._actions += [SendToClient(client_id, Accepted(request_ids=ids)) for ids in _parts(accepted)]
            self._accepted.clear()
            self._send_to_workers(self._late_releases, Release)

    def take(self) -> list[Action]:
        """Return the collected actions in order, and clear the list."""
        actions, self._actions = self._actions, []
        return actions

    def _send_to_workers(self, waiting: _Ids, message: type[Release | Resend]) -> None:
        for worker_id, ids in waiting.items():
            self._actions += [SendToWorker(worker_id, message(request_ids=part)) for part in _parts(ids)]
        waiting.clear()

    @property
    def is_empty(self) -> bool:
        """Whether no action or combined message is pending."""
        return not (self._actions or self._releases or self._resends or self._accepted or self._late_releases)


def _parts(ids: Iterable[bytes]) -> list[list[bytes]]:
    every = list(ids)
    return [every[start : start + MAX_IDS_PER_MESSAGE] for start in range(0, len(every), MAX_IDS_PER_MESSAGE)]
