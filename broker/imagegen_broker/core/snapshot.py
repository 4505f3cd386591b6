"""Statistics for `/stats`, the STATS message and the metrics.

The loop copies the live state, and the requesting thread computes the statistics from the copy. The cost
for the loop is therefore O(workers), whatever the number of their models.
"""

from dataclasses import dataclass
from math import isfinite
from sys import float_info
from typing import TYPE_CHECKING

from msgspec.structs import replace

from imagegen_broker.core.counters import Counters
from imagegen_broker.core.records import Worker
from imagegen_broker.scheduling.demand import Demand, WorkerView, demand
from imagegen_protocol.limits import MAX_JSON_INTEGER
from imagegen_protocol.statistics import (
    GpuStatistics,
    Heartbeat,
    Limits,
    RequestCounts,
    Statistics,
    Totals,
)

if TYPE_CHECKING:
    from imagegen_broker.core.broker import BrokerCore


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The state of the broker at one time. Immutable."""

    plain: Statistics
    """The statistics, except those whose computation is O(models) or O(workers)."""
    demand: Demand

    def statistics(self) -> Statistics:
        """Return the statistics. Thread-safe."""
        workers = sorted(self.demand.workers, key=lambda worker: worker.ready.name)
        return replace(
            self.plain,
            models=sorted({model for worker in workers for model in worker.ready.models}),
            per_model_stats=demand(self.demand),
            per_gpu_stats=[_row(worker) for worker in workers],
        )


def view(core: "BrokerCore", now: float) -> View:
    """Return a copy of the core's state, from which the statistics are computed later on another thread."""
    settings = core.settings
    workers = [_view(worker, now) for worker in core.workers.by_id.values()]
    queued = len(core.scheduler.queue)
    dispatched = sum(len(worker.assigned) for worker in core.workers.by_id.values())
    receiving = core.table.receiving
    plain = Statistics(
        strategy=settings.strategy,
        epoch=settings.epoch.hex(),
        version=settings.version,
        heartbeat=Heartbeat(interval_seconds=settings.interval, liveness=settings.liveness),
        uptime_seconds=round(now - core.started, 3),
        default_model=core.table.default_model,
        model_traits=core.workers.capabilities.by_model(core.workers.by_id.values()),
        num_gpus=len(workers),
        clients=len(core.clients.by_id),
        held_clients=core.scheduler.queue.paused_clients,
        requests=RequestCounts(
            receiving=receiving,
            queued=queued,
            dispatched=dispatched,
            delivered=len(core.table.requests) - receiving - queued - dispatched,
        ),
        queued_requests=queued,
        held_bytes=core.table.bytes,
        transfer_bytes=sum(client.asked_bytes + client.window.size for client in core.clients.by_id.values())
        + sum(worker.window.size for worker in core.workers.by_id.values()),
        limits=Limits(requests=settings.max_requests, bytes=settings.max_bytes),
        answers_per_second=round(core.table.answer_rate.per_second, 3),
        totals=_totals(core.table.counters),
    )
    return View(plain=plain, demand=Demand.of(core.scheduler, workers))


def _totals(counters: Counters) -> Totals:
    return Totals(
        accepted=counters.accepted,
        acknowledged=counters.acknowledged,
        abandoned=counters.abandoned,
        dispatched=counters.dispatched,
        attached=counters.attached,
        resent=counters.resent,
        workers_registered=counters.workers_registered,
        workers_lost=counters.workers_lost,
        workers_stuck=counters.workers_stuck,
        clients_lost=counters.clients_lost,
        received_bytes=counters.received_bytes,
        relayed_bytes=counters.relayed_bytes,
        malformed=counters.malformed,
        dropped=counters.dropped,
        answered=dict(counters.answered),
        rejected=dict(counters.rejected),
        requeued=dict(counters.requeued),
    )


def status(core: "BrokerCore") -> str:
    """Return a summary of the broker in one line."""
    queued, workers = len(core.scheduler.queue), core.workers.by_id.values()
    dispatched = sum(len(worker.assigned) for worker in workers)
    words = (
        f"{len(workers)} workers",
        f"{len(core.clients.by_id)} clients",
        f"depth {queued + dispatched} ({queued} queued, {dispatched} dispatched)",
        f"{core.table.answer_rate.per_second:.2f} answers/s",
    )
    return ", ".join(words)


def _state(worker: Worker) -> str:
    if worker.stuck:
        return "stuck"
    if worker.draining:
        return "draining"
    return "ready" if worker.reachable else "unreachable"


def _view(worker: Worker, now: float) -> WorkerView:
    """Return a copy of a worker's state; immutable objects are shared."""
    return WorkerView(
        worker.ready,
        worker.stats,
        _state(worker),
        worker.depth,
        worker.load,
        worker.images_running() if worker.started else 0,
        len(worker.answers),
        worker.dispatches,
        worker.warm,
        tuple(worker.assigned_models.items()),
        worker.seconds_per_image,
        worker.costs,
        worker.loaded_loras,
        worker.step_age,
        now - worker.last_received,
    )


def _row(worker: WorkerView) -> GpuStatistics:
    ready, stats = worker.ready, worker.stats
    batches, batched = _count(stats.total_batches), _count(stats.total_batched_requests)
    loaded = worker.warm.union(model for model, _ in worker.assigned_models)
    return GpuStatistics(
        gpu_id=ready.gpu_id,
        gpu_uuid=ready.gpu_uuid,
        worker=ready.name,
        host=ready.host,
        pid=_count(ready.pid),
        version=ready.version,
        http=ready.http,
        device=ready.device,
        backend=ready.backend,
        batching=ready.batching,
        models=list(ready.models),
        warm_models=[model for model in ready.models if model in loaded] if worker.warm else list(ready.models),
        state=worker.state,
        current_queue_depth=worker.load,
        running=worker.running_images,
        unacknowledged=worker.answers,
        capacity=ready.capacity,
        max_batch_size=ready.max_batch_size,
        dispatched=worker.dispatches,
        total_requests=_count(stats.total_requests),
        total_failed=_count(stats.total_failed),
        total_batches=batches,
        total_batched_requests=batched,
        avg_batch_size=round(batched / batches, 3) if batches else 0.0,
        total_images=_count(stats.total_images),
        busy_seconds=round(stats.busy_seconds, 3) if isfinite(stats.busy_seconds) else float_info.max,
        seconds_per_image=_finite(worker.seconds_per_image),
        costs=dict(worker.costs),
        loaded_loras=sorted(worker.loaded_loras),
        step_age_seconds=_finite(worker.step_age),
        last_heard_seconds=round(worker.silent_seconds, 3),
    )


def _count(reported: int) -> int:
    """Return a count that a worker reported, limited to the integers that every JSON reader reads exactly."""
    return min(reported, MAX_JSON_INTEGER)


def _finite(reported: float | None) -> float | None:
    """Return seconds that a worker reported; None if they are not finite, which JSON can't express."""
    return reported if reported is not None and isfinite(reported) else None
