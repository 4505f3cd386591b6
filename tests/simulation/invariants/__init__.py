"""The invariants of every fleet, one per file, and the functions that check them at each kind of event."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from imagegen_protocol.messages import Chunk, Result
from tests.simulation.invariants.attempts_increase import attempts_increase
from tests.simulation.invariants.bounded_input import bounded_input
from tests.simulation.invariants.bounded_output import bounded_output, small_inline
from tests.simulation.invariants.bounded_tables import bounded_tables
from tests.simulation.invariants.consistent_tables import consistent_tables
from tests.simulation.invariants.correct_positions import correct_positions
from tests.simulation.invariants.dispatched_to_holder import dispatched_to_holder
from tests.simulation.invariants.empty_tables import empty_tables, remaining_entries
from tests.simulation.invariants.exact_depth import exact_depth, wrong_depths
from tests.simulation.invariants.exact_images import exact_images
from tests.simulation.invariants.exact_inputs import exact_inputs
from tests.simulation.invariants.exactly_one_answer import exactly_one_answer, unanswered
from tests.simulation.invariants.fair_share import fair_share
from tests.simulation.invariants.fetch_within_window import fetch_within_window
from tests.simulation.invariants.generated_once import generated_once
from tests.simulation.invariants.healthy_links_stay_open import healthy_links_stay_open, nothing_requeued
from tests.simulation.invariants.justified_errors import justified_errors
from tests.simulation.invariants.no_dispatch_after_ack import no_dispatch_after_ack
from tests.simulation.invariants.no_expired_answers import no_expired_answers
from tests.simulation.invariants.no_idle_capacity import no_idle_capacity
from tests.simulation.invariants.only_dead_peers_removed import only_dead_peers_removed
from tests.simulation.invariants.only_requested_chunks import only_requested_chunks
from tests.simulation.invariants.overloaded_only_when_full import overloaded_only_when_full
from tests.simulation.invariants.requests_leave_failed_workers import requests_leave_failed_workers
from tests.simulation.invariants.requeued_first import requeued_first
from tests.simulation.invariants.suitable_workers import suitable_workers
from tests.simulation.invariants.suspects_run_alone import suspects_run_alone
from tests.simulation.invariants.transfers_resume import transfers_resume
from tests.simulation.invariants.warm_first import warm_first
from tests.simulation.invariants.within_capacity import known_capacity, true_capacity
from tests.simulation.invariants.within_receive_maximum import within_receive_maximum

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer
    from tests.simulation.clients import ClientPeer
    from tests.simulation.network import Link
    from tests.simulation.peers import Peer
    from tests.simulation.workers import WorkerPeer
    from tests.simulation.world import World

CORES_DO_NOT_RAISE = "cores_do_not_raise"
"""Name of the invariant that has no function: no core raises an exception, whatever it receives."""


def on_finish(world: "World", client: "ClientPeer", key: bytes, outcome: Any) -> None:
    """Check a request that has ended with images (a tuple) or an error."""
    submission = exactly_one_answer(world, client, key, outcome)
    if isinstance(outcome, tuple):
        world.record.outcomes["result"] += 1
        exact_images(submission, outcome)
    else:
        world.record.outcomes[outcome.code] += 1
        justified_errors(world, submission, outcome)


def on_work(world: "World", broker: "BrokerPeer", worker_id: bytes, work: Any) -> None:
    """Check a WORK that a broker sends to a worker."""
    suitable_workers(world, broker, worker_id, work)
    known_capacity(world, broker, worker_id, work)
    attempts_increase(world, broker, work)
    no_dispatch_after_ack(world, broker, work)
    dispatched_to_holder(world, broker, worker_id, work)


def on_dispatch(broker: "BrokerPeer", worker_id: bytes, work: Any) -> None:
    """Check a dispatch before any message of this round is sent."""
    requeued_first(broker, work)
    fair_share(broker, work)
    within_receive_maximum(broker, work)
    warm_first(broker, worker_id, work)


def on_position(broker: "BrokerPeer", progress: Any) -> None:
    """Check a queue position that a broker sends in this round."""
    correct_positions(broker, progress)


def on_overload(world: "World", broker: "BrokerPeer", client_id: bytes, error: Any) -> None:
    """Check an `overloaded` error of a broker."""
    overloaded_only_when_full(world, broker, client_id, error)


def on_peer_removed(world: "World", broker: "BrokerPeer", name: str, last_received: float) -> None:
    """Check that a broker counts a peer as dead whose last message arrived at `last_received`."""
    only_dead_peers_removed(world, broker, name, last_received)


def on_worker_killed(world: "World", worker: "WorkerPeer") -> None:
    """Start the checks for a worker that is about to be killed."""
    requests_leave_failed_workers(world, worker, hung=False)


def on_device_hang(world: "World", worker: "WorkerPeer") -> None:
    """Start the checks for a worker whose device hangs from now on."""
    requests_leave_failed_workers(world, worker, hung=True)


def on_batch(worker: "WorkerPeer", batch: list[bytes]) -> None:
    """Check a batch of these ids that a worker's device starts."""
    suspects_run_alone(worker, batch)


def on_started(world: "World", worker: "WorkerPeer", held: Any) -> None:
    """Check a request that a worker's device starts."""
    submission = None if held is None else world.record.submission_of(held.id)
    if submission is not None:
        if not submission.started_by:
            submission.first_started = world.now
        submission.started_by.append(worker)


def on_generated(world: "World", worker: "WorkerPeer", request_id: bytes, images: tuple[bytes, ...]) -> None:
    """Check images that a worker has generated for a request."""
    if (submission := world.record.submission_of(request_id)) is not None:
        submission.generated.append(images)
    generated_once(world, worker, request_id)


def on_inputs(world: "World", worker: "WorkerPeer", request_id: bytes, inputs: Sequence[Any]) -> None:
    """Check the input images that a worker has received for a request."""
    exact_inputs(world, worker, request_id, inputs)


def on_answer_expired(world: "World", worker: "WorkerPeer", request_id: bytes) -> None:
    """Check that a worker drops an answer because of its age."""
    no_expired_answers(world, worker, request_id, world.plan.held_seconds)


def on_fetch(peer: "Peer", fetch: Any, received: int) -> None:
    """Check a FETCH for a payload of which the process has received some bytes."""
    transfers_resume(peer, fetch, received)


def on_fetch_sent(peer: "Peer", fetch: Any, outstanding: int) -> None:
    """Check a sent FETCH; `outstanding` includes its bytes and is for the connection."""
    fetch_within_window(peer, fetch, outstanding)


def on_message_to_client(broker: "BrokerPeer", client_id: bytes, message: Any, frames: Any) -> None:
    """Check a message that a broker is about to send to a client."""
    if isinstance(message, Chunk):
        only_requested_chunks(broker, client_id, message, frames)
    elif isinstance(message, Result):
        small_inline(broker.world, message, frames)


def on_chunk_sent(world: "World", link: "Link") -> None:
    """Check a CHUNK that a broker has sent."""
    bounded_output(world, link)


def on_reconnect(world: "World", peer: "Peer", link: "Link") -> None:
    """Check that a process replaces a connection."""
    healthy_links_stay_open(world, peer, link)


def after_worker_message(world: "World", worker: "WorkerPeer") -> None:
    """Check a worker after each message."""
    true_capacity(world, worker)


def after_flush(world: "World", broker: "BrokerPeer") -> None:
    """Check a broker after a flush, before the messages are sent."""
    no_idle_capacity(broker)


def run_periodic_checks(world: "World", broker: "BrokerPeer") -> None:
    """Run the expensive checks of a broker, from time to time."""
    consistent_tables(broker)
    bounded_tables(world, broker)
    bounded_input(broker)


def is_idle(world: "World") -> bool:
    """Return whether all requests have ended and all tables are empty."""
    return not world.record.unfinished and not any(remaining_entries(world)) and not any(wrong_depths(world))


def run_final_checks(world: "World") -> None:
    """Run the final checks, long after the last fault."""
    unanswered(world)
    empty_tables(world)
    exact_depth(world)
    nothing_requeued(world)
    for broker in world.brokers:
        if broker is not None:
            run_periodic_checks(world, broker)
