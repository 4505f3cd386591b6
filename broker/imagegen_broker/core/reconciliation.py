"""`Reconciliation`: updates the requests of a worker after its report, its failure or its silence."""

import logging
from collections.abc import Mapping

from imagegen_broker.core.outbox import Outbox
from imagegen_broker.core.records import Request, State, Worker
from imagegen_broker.core.request_table import RequestTable
from imagegen_broker.scheduling.scheduler import Scheduler
from imagegen_protocol.costs import CostModel
from imagegen_protocol.errors import PoisonRequestError
from imagegen_protocol.messages import Error, WorkerReport

_MAX_RESENDS = 10
"""RESENDs for a finished request that a worker may leave unanswered."""


class Reconciliation:
    """Requeues requests that workers have lost, and attaches requests that workers already hold."""

    def __init__(self, table: RequestTable, scheduler: Scheduler, outbox: Outbox) -> None:
        self._table = table
        self._scheduler = scheduler
        self._outbox = outbox
        self._settings = table.settings

    def reconcile(self, worker: Worker, listed: WorkerReport, trusted_beat: int, now: float) -> None:
        """Store a worker's report, and compare the requests in it with the requests assigned to the worker.

        The report is newer than every WORK sent before broker heartbeat number `trusted_beat`. A request whose
        WORK was sent before that, and that the report does not list, was lost and is requeued. If the report lists
        it as finished, its answer was lost, and the worker is asked to resend it.
        """
        self._scheduler.observe(worker, now)
        worker.stats = listed.stats
        worker.seconds_per_image = listed.seconds_per_image
        worker.costs = known_costs(worker, listed.costs)
        worker.loaded_loras = frozenset(listed.loaded_loras)
        worker.warm = frozenset(listed.warm)
        worker.set_running(frozenset(listed.running), now)
        worker.finished = frozenset(listed.finished)
        active = worker.running.union(listed.queued)
        self._table.holders.update(worker, active | worker.finished)
        self._check_step_age(worker, now)
        worker.foreign = {request_id for request_id in active if request_id not in worker.assigned}
        for request_id, assignment in list(worker.assigned.items()):
            if request_id in active or assignment.beat >= trusted_beat:
                continue
            if request_id in worker.finished and assignment.resends < _MAX_RESENDS:
                assignment.resends += 1
                assignment.beat = worker.beat  # ask once per round trip, not once per heartbeat
                self._outbox.resend(worker.id, request_id)
            elif request_id in worker.finished:
                self._outbox.release(worker.id, request_id)
                self._table.requeue(assignment.request, "answer_lost", now)
            else:
                self._table.requeue(assignment.request, "lost", now)
        for request_id, assignment in list(worker.answers.items()):
            if request_id not in worker.finished and assignment.beat < trusted_beat:
                self._table.drop_answer(assignment.request)
        for request_id in (*listed.running, *listed.queued, *listed.finished):
            if request_id not in worker.assigned:
                self._claim(worker, request_id, usable=request_id in worker.finished or not worker.stuck)
        self._scheduler.worker_reported(worker)

    def _check_step_age(self, worker: Worker, now: float) -> None:
        """Requeue the requests of a worker whose device hangs, although its heartbeats continue."""
        limit = self._settings.step_timeout
        is_stuck = bool(limit) and worker.step_age is not None and worker.step_age > (limit or 0)
        was_stuck, worker.stuck = worker.stuck, is_stuck
        if is_stuck and not was_stuck:
            self._table.counters.workers_stuck += 1
            self._outbox.log(
                logging.WARNING,
                "worker hung",
                worker=worker.name,
                step_age_seconds=worker.step_age,
                requests=len(worker.assigned),
            )
            self.requeue_after_failure(worker, "worker_stuck", "hung", now)

    def _claim(self, worker: Worker, request_id: bytes, *, usable: bool) -> None:
        """Handle a listed id that is not assigned to the worker: attach its request, or send RELEASE.

        `usable`: the worker has the answer, or is expected to produce it.
        """
        request = self._table.requests.get(request_id)
        worker.orphans.discard(request_id)
        if request is None:
            acknowledged_by = self._table.recent_ids.get(request_id)
            if acknowledged_by is not None:
                self._outbox.release(worker.id, request_id)
            if usable and not acknowledged_by:  # its client may still submit it to this broker
                worker.orphans.add(request_id)
        elif request.state in (State.QUEUED, State.RECEIVING):
            if usable and request.client.is_reachable and worker.serves(request.model):
                self._table.attach(request, worker)
        elif request.state is State.DELIVERED and request.worker is None and request.answer is None:
            self._table.hold_answer(request, worker)  # the worker counted as dead, and still has the answer
        elif request.worker is not worker:
            self._outbox.release(worker.id, request_id)

    def requeue_after_failure(self, worker: Worker, reason: str, failure: str, now: float) -> None:
        """Requeue a worker's requests. Those that were running count its failure as a death, up to a maximum."""
        for assignment in list(worker.assigned.values()):
            request = assignment.request
            is_death = request.id in worker.running
            if is_death:
                request.deaths.append(f"attempt {request.attempt} on {worker.name!r}, which {failure}")
            if len(request.deaths) >= self._settings.max_attempts:
                text = f"{len(request.deaths)} workers failed while running it: {'; '.join(request.deaths)}"
                self.fail(request, PoisonRequestError.code, text, now)
            else:
                self._table.requeue(request, reason, now, is_death=is_death)

    def fail(self, request: Request, code: str, text: str, now: float) -> None:
        answer = Error(request_id=request.id, code=code, message=text, attempt=max(1, request.attempt))
        self._table.fail(request, answer, now)


def known_costs(worker: Worker, reported: Mapping[str, CostModel]) -> dict[str, CostModel]:
    """Return the cost models of a worker's models after a report; what it does not report has not changed."""
    served = {model: cost for model, cost in reported.items() if model in worker.ready.models}
    return {**worker.costs, **served} if served else worker.costs
