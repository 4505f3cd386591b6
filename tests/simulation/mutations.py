"""Deliberate bugs in the cores; the simulation must detect each one.

A mutation replaces one piece of the source of one function. If the function no longer contains the piece,
the mutation must be adapted to the new code.

Two bugs are missing, because no fleet fails with either: stalled payloads occupy the window, and a slow worker is
asked for as many bytes as the fastest. `tests/unit/protocol/test_transfers.py` fails with either.
"""

import importlib
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

WORKERS = "imagegen_broker.core.worker_sessions:WorkerSessions."
CLIENTS = "imagegen_broker.core.client_sessions:ClientSessions."
ADMISSION = "imagegen_broker.core.admission:Admission."
RECONCILIATION = "imagegen_broker.core.reconciliation:Reconciliation."
LIMITS = "imagegen_broker.core.unacknowledged_limits:UnacknowledgedLimits."
TABLE = "imagegen_broker.core.request_table:RequestTable."
OUTBOX = "imagegen_broker.core.outbox:Outbox."
BROKER = "imagegen_broker.core.broker:BrokerCore."
ORDERED = "imagegen_broker.scheduling.strategies.base:OrderedStrategy."
QUEUE = "imagegen_broker.scheduling.fair_queue:FairQueue."
RECORDS = "imagegen_broker.core.records:"
WORKER = "imagegen_worker.core.requests:RequestHandler."
ANSWER_SENDER = "imagegen_worker.core.answer_sender:AnswerSender."
GATE = "imagegen_worker.core.exclusive_gate:ExclusiveGate."
HELD = "imagegen_worker.core.held_requests:HeldRequests."
CLIENT = "imagegen_client.core:ClientCore."
LINK = "imagegen_client.link:Link."
RECEIPTS = "imagegen_client.receipts:Receipts."
ANSWERS = "imagegen_client.payloads:Payloads."
TRANSFERS = "imagegen_broker.core.transfers:Transfers."
DOWNLOAD = "imagegen_protocol.transfers:Download."
DOWNLOADS = "imagegen_protocol.transfers:Downloads."


@dataclass(frozen=True, slots=True)
class Mutation:
    """A bug: in the function at `where`, `old` becomes `new`; one of the invariants `caught_by` must catch it."""

    name: str
    where: str
    old: str
    new: str
    caught_by: tuple[str, ...]
    first_seed: int = 0
    """Seed of the first fleet to run: the fleets before it did not show the bug when they were last tried."""
    theme: str | None = None
    """Theme of the fleets, for a bug that few fleets of other themes show."""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Apply the mutation within the context. Raises ValueError if the code no longer contains `old`."""
        module_name, _, path = self.where.partition(":")
        module = importlib.import_module(module_name)
        *owners, name = path.split(".")
        owner: Any = module
        for part in owners:
            owner = getattr(owner, part)
        original = inspect.getattr_static(owner, name)
        function = original.fget if isinstance(original, property) else original
        source = textwrap.dedent(inspect.getsource(function))
        if source.count(self.old) != 1:
            raise ValueError(f"{self.where} does not contain exactly one {self.old!r}")
        namespace: dict[str, Any] = {}
        exec(compile(source.replace(self.old, self.new), f"<{self.name}>", "exec"), vars(module), namespace)
        setattr(owner, name, namespace[name])
        try:
            yield
        finally:
            setattr(owner, name, original)


MUTATIONS = (
    Mutation(
        "releases are never sent",
        OUTBOX + "release",
        "self._releases[worker_id][request_id] = None",
        "pass",
        ("no_expired_answers",),
    ),
    Mutation(
        "depth ignores dispatched requests",
        RECORDS + "Worker.load",
        "self.assigned_images + len(self.foreign)",
        "len(self.foreign)",
        ("within_capacity",),
    ),
    Mutation(
        "capacity is off by one",
        RECORDS + "Worker.room",
        "self.ready.capacity - self.load",
        "self.ready.capacity + 1 - self.load",
        ("within_capacity",),
    ),
    Mutation(
        "recently finished ids are never dropped",
        TABLE + "_remember",
        "self.recent_ids.popitem(last=False)",
        "pass",
        ("bounded_tables",),
    ),
    Mutation(
        "an abandoned request counts as acknowledged",
        CLIENTS + "remove",
        "acknowledged=False",
        "acknowledged=True",
        ("exactly_one_answer",),
    ),
    Mutation(
        "the echoed beat is ignored",
        RECONCILIATION + "reconcile",
        "assignment.beat >= trusted_beat",
        "False",
        ("dispatched_to_holder", "within_capacity", "healthy_links_stay_open"),
    ),
    Mutation(
        "listed requests are not attached",
        RECONCILIATION + "_claim",
        "self._table.attach(request, worker)",
        "pass",
        ("dispatched_to_holder", "generated_once"),
        first_seed=47,
    ),
    Mutation(
        "a new broker dispatches at once",
        BROKER + "_flush",
        "if now >= self.dispatching_from:",
        "if True:",
        ("dispatched_to_holder", "generated_once"),
        first_seed=55,
    ),
    Mutation(
        "a new broker rejects models that no worker has registered yet",
        ADMISSION + "is_unknown",
        "now >= self._dispatching_from and",
        "",
        ("justified_errors",),
        first_seed=33,
        theme="rolling_restart",
    ),
    Mutation(
        "requeued requests go to the tail",
        TABLE + "requeue",
        "requeued=not is_answered",
        "requeued=False",
        ("requeued_first",),
        first_seed=18,
    ),
    Mutation(
        "the attempt is not incremented",
        TABLE + "dispatch",
        "request.attempt += 1",
        "request.attempt = max(1, request.attempt)",
        ("attempts_increase",),
    ),
    Mutation(
        "the requests of a dead worker are dropped",
        WORKERS + "remove_dead_worker",
        'self._requests.requeue_after_failure(worker, "worker_lost", "died", now)',
        "worker.assigned.clear()",
        ("consistent_tables", "exactly_one_answer"),
    ),
    Mutation(
        "deaths are not counted",
        RECONCILIATION + "requeue_after_failure",
        "is_death = request.id in worker.running",
        "is_death = False",
        ("exactly_one_answer", "justified_errors"),
        first_seed=9,
    ),
    Mutation(
        "a hung device is not detected",
        RECONCILIATION + "_check_step_age",
        "was_stuck, worker.stuck = worker.stuck, is_stuck",
        "was_stuck = True",
        ("requests_leave_failed_workers", "suitable_workers"),
    ),
    Mutation(
        "draining workers get work",
        RECORDS + "Worker.is_available",
        "and not self.draining",
        "",
        ("suitable_workers",),
        first_seed=19,
    ),
    Mutation(
        "a broker that was suspended removes peers with unread messages",
        BROKER + "_tick",
        "now - self._next_tick <= self.settings.interval",
        "True",
        ("only_dead_peers_removed",),
        first_seed=8,
    ),
    Mutation(
        "a peer is removed after two silent intervals",
        WORKERS + "tick",
        "self._settings.silence",
        "2 * self._settings.interval",
        ("only_dead_peers_removed",),
    ),
    Mutation(
        "no request is rejected",
        ADMISSION + "_overload",
        "if len(table.requests) >= settings.max_requests:",
        "if False:",
        ("bounded_tables",),
        first_seed=23,
    ),
    Mutation(
        "a client that acknowledges nothing is not paused",
        LIMITS + "pause_or_resume",
        "self._scheduler.queue.pause(client)",
        "pass",
        ("within_receive_maximum", "consistent_tables"),
    ),
    Mutation(
        "a client that acknowledges again stays paused",
        LIMITS + "pause_or_resume",
        "self._scheduler.queue.resume(client)",
        "pass",
        ("consistent_tables", "exactly_one_answer"),
    ),
    Mutation(
        "requests whose answer was lost precede other clients' requests",
        TABLE + "requeue",
        "requeued=not is_answered",
        "requeued=True",
        ("fair_share",),
        first_seed=2,
        theme="all_faults",
    ),
    Mutation(
        "clients do not take turns",
        QUEUE + "end_turn",
        "level.part_of(request).end_turn(request.client)",
        "pass",
        ("fair_share",),
    ),
    Mutation(
        "loaded models are ignored",
        ORDERED + "refresh",
        "not worker.is_warm(model)",
        "False",
        ("warm_first",),
        first_seed=28,
    ),
    Mutation(
        "a suspect request shares a batch",
        BROKER + "_dispatch",
        "request.is_suspect(self.settings.max_attempts)",
        "False",
        ("justified_errors",),
        first_seed=4,
        theme="poison",
    ),
    Mutation(
        "other requests start while an exclusive request runs",
        GATE + "admit",
        "self._exclusive = number",
        "pass",
        ("suspects_run_alone",),
        theme="poison",
    ),
    Mutation(
        "an exclusive request does not wait for running requests",
        GATE + "admit",
        "len(unfinished) > len(self._waiting)",
        "False",
        ("suspects_run_alone",),
        first_seed=4,
        theme="poison",
    ),
    Mutation(
        "a queue position ignores requests of higher priority",
        QUEUE + "max_position",
        "priority > request.priority",
        "False",
        ("correct_positions",),
        first_seed=3,
        theme="all_faults",
    ),
    Mutation(
        "queue positions are sent after the dispatch",
        TABLE + "_transition",
        "self._positions.unfollow(request)",
        "pass",
        ("consistent_tables", "correct_positions"),
        first_seed=31,
    ),
    Mutation(
        "a client's bytes are not bounded",
        ADMISSION + "_overload",
        "held.held_bytes + size > settings.max_bytes_per_client",
        "False",
        ("bounded_tables",),
    ),
    Mutation(
        "the worker ignores RESEND",
        WORKER + "on_resend",
        "if held.answer is not None:",
        "if False:",
        ("no_expired_answers", "exactly_one_answer", "generated_once"),
    ),
    Mutation(
        "requests listed by a stuck worker are attached",
        RECONCILIATION + "reconcile",
        "usable=request_id in worker.finished or not worker.stuck",
        "usable=True",
        ("requests_leave_failed_workers",),
        first_seed=41,
        theme="freezes",
    ),
    Mutation(
        "held answers never expire",
        HELD + "_expires_at",
        "seconds = self._limits.seconds",
        "seconds = 1e9",
        ("empty_tables", "no_expired_answers"),
        first_seed=29,
    ),
    Mutation(
        "results are not acknowledged",
        RECEIPTS + "acknowledge",
        "self._ids.append(request_id)",
        "pass",
        ("no_expired_answers", "empty_tables"),
    ),
    Mutation(
        "duplicates are delivered twice",
        CLIENT + "_receive_answer",
        "return []",
        "return [ev.Complete(message.request_id, ev.Answer(message, payload))]",
        ("exactly_one_answer",),
    ),
    Mutation(
        "a new epoch is ignored",
        LINK + "apply_heartbeat",
        "return before is not None and before != self._session",
        "return False",
        ("exactly_one_answer",),
        first_seed=43,
    ),
    Mutation(
        "a receiver ignores its window",
        DOWNLOADS + "_ask",
        "self._count(download, length)",
        "pass",
        ("fetch_within_window", "bounded_output", "only_dead_peers_removed", "empty_tables"),
    ),
    Mutation(
        "a receiver ignores the window of the broker",
        DOWNLOADS + "configure",
        "max(MIN_CHUNK_BYTES, max_window)",
        "1 << 30",
        ("fetch_within_window",),
        first_seed=12,
    ),
    Mutation(
        "a broker ignores unconfirmed bytes",
        TRANSFERS + "on_client_fetch",
        "client.window.room(self.window) - client.asked_bytes",
        "self.window - client.asked_bytes",
        ("bounded_output",),
        first_seed=9,
    ),
    Mutation(
        "a broker relays as many bytes as a client requests",
        TRANSFERS + "on_client_fetch",
        "min(fetch.length, room, to_end)",
        "min(fetch.length, to_end)",
        ("bounded_output",),
        first_seed=9,
    ),
    Mutation(
        "a broker relays chunks that the client has not requested",
        TRANSFERS + "on_worker_chunk",
        "not is_expected or not 0 < size <= min(relay.end - relay.position, MAX_CHUNK_BYTES)",
        "False",
        ("only_requested_chunks",),
        first_seed=12,
    ),
    Mutation(
        "an answer is fetched from its beginning on each connection",
        ANSWERS + "begin",
        "download is None or download.payload_id != header.payload_id",
        "True",
        ("transfers_resume",),
    ),
    Mutation(
        "received bytes are dropped with the connection",
        DOWNLOAD + "restart",
        "self.asked = len(self._data)",
        "self._data, self.asked = bytearray(), 0",
        ("transfers_resume",),
        first_seed=9,
    ),
    Mutation(
        "chunks are accepted in any order",
        DOWNLOAD + "accept",
        "offset != len(self._data) or ",
        "",
        ("exact_images", "exact_inputs", "justified_errors", "exactly_one_answer"),
        first_seed=10,
    ),
    Mutation(
        "an answer is acknowledged before its payload is complete",
        CLIENT + "_receive_answer",
        "self._pending.mark_accepted(entry.id)",
        "self._receipts.acknowledge(entry.id)",
        ("exactly_one_answer", "empty_tables"),
    ),
    Mutation(
        "a request is dispatched before its input images are complete",
        RECORDS + "Request.is_complete",
        "bool(self.payload)",
        "True",
        ("exact_inputs", "justified_errors"),
    ),
    Mutation(
        "chunks of a worker do not count as signs of life",
        WORKERS + "handle",
        "worker.last_received = now",
        "worker.last_received = worker.last_received if isinstance(message, Chunk) else now",
        ("only_dead_peers_removed",),
        first_seed=22,
        theme="interrupted_transfers",
    ),
    Mutation(
        "chunks of the broker do not count as signs of life",
        CLIENT + "_receive",
        "resend_all = self._link.record_message(now)",
        "resend_all = not isinstance(message, messages.Chunk) and self._link.record_message(now)",
        ("healthy_links_stay_open",),
    ),
    Mutation(
        "a slow worker sends as many inline bytes as its client permits",
        ANSWER_SENDER + "send",
        "min(held.inline_bytes, DEFAULT_INLINE_BYTES)",
        "held.inline_bytes",
        ("only_dead_peers_removed", "healthy_links_stay_open"),
        first_seed=93,
        theme="slow_links",
    ),
    Mutation(
        "a payload that waits behind others is requested again",
        DOWNLOADS + "_stalls_at",
        "_PATIENCE * self._source_of(download).answer_seconds",
        "0.0",
        ("exactly_one_answer", "generated_once", "healthy_links_stay_open"),
        theme="shared_link",
    ),
    Mutation(
        "a client fetches answers that are lost",
        "imagegen_client.payloads:Payloads.pause",
        "self._downloads.remove(entry.id)",
        "None",
        ("exactly_one_answer",),
        first_seed=4209,
    ),
)
