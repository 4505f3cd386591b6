"""Statistics: plain values copied out of the live state, for `/stats`, the STATS message and the metrics."""

from typing import Any

from imagegen_broker.core.demand import demand
from imagegen_broker.core.ledger import Ledger
from imagegen_broker.core.records import State, Worker


def statistics(ledger: Ledger, started: float, now: float) -> dict[str, Any]:
    """Return the broker's statistics; times in seconds, sizes in bytes."""
    counters = ledger.counters
    workers = sorted(ledger.workers.values(), key=lambda worker: worker.name)
    queued = len(ledger.queue)
    dispatched = sum(len(worker.assigned) for worker in workers)
    return {
        "strategy": ledger.settings.strategy,
        "epoch": ledger.settings.epoch.hex(),
        "version": ledger.settings.version,
        "heartbeat": {"interval_seconds": ledger.settings.interval, "liveness": ledger.settings.liveness},
        "uptime_seconds": round(now - started, 3),
        "default_model": ledger.default_model,
        "models": ledger.placement.models(),
        "model_traits": ledger.traits.told(ledger.workers.values()),
        "num_gpus": len(workers),
        "clients": len(ledger.clients),
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
        "per_model_stats": demand(ledger),
        "per_gpu_stats": [_worker(worker, now) for worker in workers],
    }


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


def _worker(worker: Worker, now: float) -> dict[str, Any]:
    ready, stats = worker.ready, worker.stats
    batches = stats.total_batches
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
        "warm_models": [model for model in ready.models if worker.is_warm(model)]
        if worker.warm
        else list(ready.models),
        "state": _state(worker),
        "current_queue_depth": worker.depth,
        "running": len(worker.running),
        "unacknowledged": len(worker.holding),
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
        "last_heard_seconds": round(now - worker.heard, 3),
    }
