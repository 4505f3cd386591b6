"""Deliberate faults in the cores, each one a bug that somebody could write; the simulation must catch every one.

A mutation replaces one piece of the source of one function. If the piece is not there any more, the mutation must
be written anew for the code as it is now.

Not here, because no fleet fails with them alone: that stalled payloads hold the window, and that a slow worker is
asked for as much as the fastest. `tests/unit/protocol/test_transfers.py` fails with either.
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
        """Have the bug while the context lasts. Raises ValueError if the code has moved on."""
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
            raise ValueError(f"{self.where} has no longer exactly one {self.old!r}")
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
        ("no_answer_grows_old",),
    ),
    Mutation(
        "depth ignores what was dispatched",
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
        "given up counts as acknowledged",
        CLIENTS + "remove",
        "acknowledged=False",
        "acknowledged=True",
        ("one_answer",),
    ),
    Mutation(
        "the echoed beat is not looked at",
        RECONCILIATION + "reconcile",
        "assignment.beat >= trusted_beat",
        "False",
        ("given_where_held", "within_capacity"),
    ),
    Mutation(
        "what a worker lists is not attached",
        RECONCILIATION + "_claim",
        "self._table.attach(request, worker)",
        "pass",
        ("given_where_held", "made_once"),
        first_seed=47,
    ),
    Mutation(
        "a new broker dispatches at once",
        BROKER + "_flush",
        "if now >= self.dispatching_from:",
        "if True:",
        ("given_where_held", "made_once"),
        first_seed=55,
    ),
    Mutation(
        "a new broker refuses models that it does not know yet",
        ADMISSION + "is_unknown",
        "now >= self._dispatching_from and",
        "",
        ("reasoned_errors",),
        first_seed=33,
        theme="rolling",
    ),
    Mutation(
        "requests come back at the tail",
        TABLE + "requeue",
        "requeued=not is_answered",
        "requeued=False",
        ("returned_go_first",),
        first_seed=18,
    ),
    Mutation(
        "the attempt is not raised",
        TABLE + "dispatch",
        "request.attempt += 1",
        "request.attempt = max(1, request.attempt)",
        ("attempts_grow",),
    ),
    Mutation(
        "the requests of a dead worker are dropped",
        WORKERS + "remove_dead_worker",
        'self._requests.requeue_after_failure(worker, "worker_lost", "died", now)',
        "worker.assigned.clear()",
        ("books_agree", "one_answer"),
    ),
    Mutation(
        "deaths are not counted",
        RECONCILIATION + "requeue_after_failure",
        "is_death = request.id in worker.running",
        "is_death = False",
        ("one_answer", "reasoned_errors"),
        first_seed=9,
    ),
    Mutation(
        "a hung device is not noticed",
        RECONCILIATION + "_check_step_age",
        "was_stuck, worker.stuck = worker.stuck, is_stuck",
        "was_stuck = True",
        ("work_moves_on", "fit_workers"),
    ),
    Mutation(
        "draining workers get work",
        RECORDS + "Worker.is_available",
        "and not self.draining",
        "",
        ("fit_workers",),
        first_seed=19,
    ),
    Mutation(
        "a broker that slept buries whom it has not read yet",
        BROKER + "_tick",
        "now - self._next_tick <= self.settings.interval",
        "True",
        ("only_the_dead_are_buried",),
        first_seed=8,
    ),
    Mutation(
        "two silent intervals are death",
        WORKERS + "tick",
        "self._settings.silence",
        "2 * self._settings.interval",
        ("only_the_dead_are_buried",),
    ),
    Mutation(
        "nothing is refused",
        ADMISSION + "_overload",
        "if len(table.requests) >= settings.max_requests:",
        "if False:",
        ("bounded_tables",),
        first_seed=23,
    ),
    Mutation(
        "a client that acknowledges nothing is not held out",
        LIMITS + "pause_or_resume",
        "self._scheduler.queue.pause(client)",
        "pass",
        ("within_maximum", "books_agree"),
    ),
    Mutation(
        "a client that acknowledges again stays held out",
        LIMITS + "pause_or_resume",
        "self._scheduler.queue.resume(client)",
        "pass",
        ("books_agree", "one_answer"),
    ),
    Mutation(
        "what is made again for a client that did not acknowledge goes before others' requests",
        TABLE + "requeue",
        "requeued=not is_answered",
        "requeued=True",
        ("fair_share",),
        first_seed=2,
        theme="everything",
    ),
    Mutation(
        "there is no fair share",
        QUEUE + "end_turn",
        "level.part_of(request).end_turn(request.client)",
        "pass",
        ("fair_share",),
    ),
    Mutation(
        "any worker is as good as one that has the model loaded",
        ORDERED + "refresh",
        "not worker.is_warm(model)",
        "False",
        ("warm_first",),
        first_seed=28,
    ),
    Mutation(
        "a suspect has company",
        BROKER + "_dispatch",
        "request.is_suspect(self.settings.max_attempts)",
        "False",
        ("reasoned_errors",),
        first_seed=4,
        theme="poison",
    ),
    Mutation(
        "nothing waits for the end of what runs alone",
        GATE + "admit",
        "self._exclusive = number",
        "pass",
        ("runs_alone",),
        theme="poison",
    ),
    Mutation(
        "what is to run alone does not wait for what runs",
        GATE + "admit",
        "len(unfinished) > len(self._waiting)",
        "False",
        ("runs_alone",),
        first_seed=4,
        theme="poison",
    ),
    Mutation(
        "a place does not count those of higher priority",
        QUEUE + "max_position",
        "priority > request.priority",
        "False",
        ("true_places",),
        first_seed=3,
        theme="everything",
    ),
    Mutation(
        "who follows a request is told of it when it has long been given out",
        TABLE + "_transition",
        "self._positions.unfollow(request)",
        "pass",
        ("books_agree", "true_places"),
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
        ("no_answer_grows_old", "one_answer", "made_once"),
    ),
    Mutation(
        "what a stuck worker lists is attached",
        RECONCILIATION + "reconcile",
        "usable=request_id in worker.finished or not worker.stuck",
        "usable=True",
        ("work_moves_on",),
        first_seed=41,
        theme="freezes",
    ),
    Mutation(
        "held answers never grow old",
        HELD + "next_expiry",
        "return None if oldest is None else oldest.answered_at + self._limits.seconds",
        "return None",
        ("empty_tables",),
        first_seed=29,
    ),
    Mutation(
        "results are not acknowledged",
        RECEIPTS + "acknowledge",
        "self._ids.append(request_id)",
        "pass",
        ("no_answer_grows_old", "empty_tables"),
    ),
    Mutation(
        "duplicates are delivered twice",
        CLIENT + "_receive_answer",
        "return []",
        "return [ev.Complete(message.request_id, ev.Answer(message, payload))]",
        ("one_answer",),
    ),
    Mutation(
        "a new epoch is not noticed",
        LINK + "apply_heartbeat",
        "return before is not None and before != self._session",
        "return False",
        ("one_answer",),
        first_seed=43,
    ),
    Mutation(
        "a receiver ignores its window",
        DOWNLOADS + "_ask",
        "self._count(download, length)",
        "pass",
        ("asked_within_window", "bounded_output", "only_the_dead_are_buried", "empty_tables"),
    ),
    Mutation(
        "a receiver ignores the window of the broker",
        DOWNLOADS + "configure",
        "max(MIN_CHUNK_BYTES, max_window)",
        "1 << 30",
        ("asked_within_window",),
        first_seed=12,
    ),
    Mutation(
        "a broker ignores which bytes are not confirmed",
        TRANSFERS + "on_client_fetch",
        "client.window.room(self.window) - client.asked_bytes",
        "self.window - client.asked_bytes",
        ("bounded_output",),
        first_seed=9,
    ),
    Mutation(
        "a broker relays as much as a client asks for",
        TRANSFERS + "on_client_fetch",
        "min(fetch.length, room, to_end)",
        "min(fetch.length, to_end)",
        ("bounded_output",),
        first_seed=9,
    ),
    Mutation(
        "a broker relays chunks that the client has not asked for",
        TRANSFERS + "on_worker_chunk",
        "not is_expected or not 0 < size <= min(relay.end - relay.position, MAX_CHUNK_BYTES)",
        "False",
        ("only_what_was_asked",),
        first_seed=12,
    ),
    Mutation(
        "an answer is fetched from its beginning on each connection",
        ANSWERS + "begin",
        "download is None or download.payload_id != header.payload_id",
        "True",
        ("resumes_where_it_stopped",),
    ),
    Mutation(
        "what has arrived is dropped with the connection",
        DOWNLOAD + "restart",
        "self.asked = len(self._data)",
        "self._data, self.asked = bytearray(), 0",
        ("resumes_where_it_stopped",),
        first_seed=9,
    ),
    Mutation(
        "chunks are accepted in any order",
        DOWNLOAD + "accept",
        "offset != len(self._data) or ",
        "",
        ("right_image", "exact_inputs", "reasoned_errors"),
        first_seed=10,
    ),
    Mutation(
        "an answer is acknowledged before its payload is complete",
        CLIENT + "_receive_answer",
        "self._pending.mark_accepted(entry.id)",
        "self._receipts.acknowledge(entry.id)",
        ("one_answer", "empty_tables"),
    ),
    Mutation(
        "a request is dispatched before its input images are complete",
        RECORDS + "Request.is_complete",
        "bool(self.payload)",
        "True",
        ("exact_inputs", "reasoned_errors"),
    ),
    Mutation(
        "only whole messages of a worker are signs of life",
        WORKERS + "handle",
        "worker.last_received = now",
        "worker.last_received = worker.last_received if isinstance(message, Chunk) else now",
        ("only_the_dead_are_buried",),
        first_seed=22,
        theme="interrupted",
    ),
    Mutation(
        "only whole messages of the broker are signs of life",
        CLIENT + "_receive",
        "resend_all = self._link.record_message(now)",
        "resend_all = not isinstance(message, messages.Chunk) and self._link.record_message(now)",
        ("healthy_links_hold",),
    ),
    Mutation(
        "a slow worker sends as much inline as its client permits",
        ANSWER_SENDER + "send",
        "min(held.inline_bytes, DEFAULT_INLINE_BYTES)",
        "held.inline_bytes",
        ("only_the_dead_are_buried", "healthy_links_hold"),
        first_seed=93,
        theme="slow",
    ),
    Mutation(
        "a payload that waits behind others is asked for again",
        DOWNLOADS + "_stalls_at",
        "_PATIENCE * self._source_of(download).answer_seconds",
        "0.0",
        ("one_answer", "made_once", "healthy_links_hold"),
        theme="shared_link",
    ),
    Mutation(
        "a client fetches answers that are lost",
        "imagegen_client.payloads:Payloads.pause",
        "self._downloads.remove(entry.id)",
        "pass",
        ("one_answer",),
        first_seed=4209,
    ),
    Mutation(
        "a worker keeps the answers of a broker that has restarted",
        WORKER + "_is_claimed",
        "and session.epoch == held.claimed_by",
        "",
        ("no_answer_grows_old",),
        first_seed=160,
        theme="interrupted",
    ),
)
