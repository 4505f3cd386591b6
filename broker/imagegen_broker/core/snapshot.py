"""Statistics, for `/stats`, the STATS message and the metrics: a copy of the live state, and what is made of it.

The broker's one loop copies; whoever asked makes the rest, on a thread of its own. So what the loop does for HTTP
grows with the workers, not with the models of each.
"""

from dataclasses import dataclass
from typing import Any

from imagegen_broker.core.demand import Demand, WorkerView, demand
from imagegen_broker.core.ledger import Ledger
from imagegen_broker.core.records import State, Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What was so at one time; nothing in it changes any more."""

    plain: dict[str, Any]
    """The part of the statistics that is numbers and short words."""
    demand: Demand

    def statistics(self) -> dict[str, Any]:
        """Return the broker's statistics; times in seconds, sizes in bytes. Any thread may."""
        workers = sorted(self.demand.workers, key=lambda worker: worker.ready.name)
        return self.plain | {
            "models": sorted({model for worker in workers for model in worker.ready.models}),
            "per_model_stats": demand(self.demand),
            "per_gpu_stats": [_row(worker) for worker in workers],
        }


def view(ledger: Ledger, started: float, now: float) -> View:
    """Copy what is to be shown."""
    counters = ledger.counters
    workers = [_view(worker, now) for worker in ledger.workers.values()]
    queued = len(ledger.queue)
    dispatched = sum(len(worker.assigned) for worker in ledger.workers.values())
    plain = {
        "strategy": ledger.settings.strategy,
        "epoch": ledger.settings.epoch.hex(),
        "version": ledger.settings.version,
        "heartbeat": {"interval_seconds": ledger.settings.interval, "liveness": ledger.settings.liveness},
        "uptime_seconds": round(now - started, 3),
        "default_model": ledger.default_model,
        "model_traits": ledger.capabilities.told(ledger.workers.values()),
        "num_gpus": len(workers),
        "clients": len(ledger.clients),
        "held_clients": ledger.queue.held_clients,
        "requests": {
            State.QUEUED.value: queued,
            State.DISPATCHED.value: dispatched,
            State.DELIVERED.value: len(ledger.requests) - queued - dispatched,
        },
        "queued_requests": queued,
        "held_bytes": ledger.bytes,
        "limits": {"requests": ledger.settings.max_requests, "bytes": ledger.settings.max_bytes},
        "answers_per_second": round(ledger.rate.per_second, 3),
        "totals": {
            "accepted": counters.accepted,
            "acknowledged": counters.acknowledged,
            "abandoned": counters.abandoned,
            "dispatched": counters.dispatched,
            "attached": counters.attached,
            "resent": counters.resent,
            "workers_registered": counters.workers_registered,
            "workers_lost": counters.workers_lost,
            "workers_stuck": counters.workers_stuck,
            "clients_lost": counters.clients_lost,
            "malformed": counters.malformed,
            "dropped": counters.dropped,
            "answered": dict(counters.answered),
            "rejected": dict(counters.rejected),
            "requeued": dict(counters.requeued),
        },
    }
    return View(plain=plain, demand=Demand.of(ledger, workers))


def status(ledger: Ledger) -> str:
    """Return one line about the broker, for people."""
    queued, workers = len(ledger.queue), ledger.workers.values()
    dispatched = sum(len(worker.assigned) for worker in workers)
    words = (
        f"{len(workers)} workers",
        f"{len(ledger.clients)} clients",
        f"depth {queued + dispatched} ({queued} queued, {dispatched} dispatched)",
        f"{ledger.rate.per_second:.2f} answers/s",
    )
    return ", ".join(words)


def _state(worker: Worker) -> str:
    if worker.stuck:
        return "stuck"
    if worker.draining:
        return "draining"
    return "ready" if worker.reachable else "unreachable"


def _view(worker: Worker, now: float) -> WorkerView:
    """Copy what changes, and refer to what is only ever exchanged as a whole."""
    return WorkerView(
        worker.ready,
        worker.stats,
        _state(worker),
        len(worker.assigned) + len(worker.others),
        len(worker.running),
        len(worker.holding),
        worker.dispatches,
        worker.warm,
        tuple(worker.needed.items()),
        worker.seconds_per_image,
        worker.step_age,
        now - worker.heard,
    )


def _row(worker: WorkerView) -> dict[str, Any]:
    ready, stats = worker.ready, worker.stats
    batches = stats.total_batches
    loaded = worker.warm.union(model for model, _ in worker.needed)
    return {
        "gpu_id": ready.gpu_id,
        "gpu_uuid": ready.gpu_uuid,
        "worker": ready.name,
        "host": ready.host,
        "pid": ready.pid,
        "version": ready.version,
        "http": ready.http,
        "device": ready.device,
        "backend": ready.backend,
        "batching": ready.batching,
        "models": list(ready.models),
        "warm_models": [model for model in ready.models if model in loaded] if worker.warm else list(ready.models),
        "state": worker.state,
        "current_queue_depth": worker.depth,
        "running": worker.running,
        "unacknowledged": worker.holding,
        "capacity": ready.capacity,
        "max_batch_size": ready.max_batch_size,
        "dispatched": worker.dispatches,
        "total_requests": stats.total_requests,
        "total_failed": stats.total_failed,
        "total_batches": batches,
        "total_batched_requests": stats.total_batched_requests,
        "avg_batch_size": round(stats.total_batched_requests / batches, 3) if batches else 0.0,
        "total_images": stats.total_images,
        "busy_seconds": round(stats.busy_seconds, 3),
        "seconds_per_image": worker.seconds_per_image,
        "step_age_seconds": worker.step_age,
        "last_heard_seconds": round(worker.silent_seconds, 3),
    }
