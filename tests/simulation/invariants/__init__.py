"""The invariants of every fleet, one per file, and the functions that check them at each kind of event."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from imagegen_protocol.messages import Chunk, Result
from tests.simulation.invariants.acknowledged_is_over import acknowledged_is_over
from tests.simulation.invariants.asked_within_window import asked_within_window
from tests.simulation.invariants.attempts_grow import attempts_grow
from tests.simulation.invariants.books_agree import books_agree
from tests.simulation.invariants.bounded_input import bounded_input
from tests.simulation.invariants.bounded_output import bounded_output, small_inline
from tests.simulation.invariants.bounded_tables import bounded_tables
from tests.simulation.invariants.empty_tables import empty_tables, leftovers
from tests.simulation.invariants.exact_inputs import exact_inputs
from tests.simulation.invariants.fair_share import fair_share
from tests.simulation.invariants.fit_workers import fit_workers
from tests.simulation.invariants.given_where_held import given_where_held
from tests.simulation.invariants.healthy_links_hold import healthy_links_hold, nothing_requeued
from tests.simulation.invariants.made_once import made_once
from tests.simulation.invariants.no_answer_grows_old import no_answer_grows_old
from tests.simulation.invariants.no_idle_room import no_idle_room
from tests.simulation.invariants.one_answer import one_answer, unanswered
from tests.simulation.invariants.only_the_dead_are_buried import only_the_dead_are_buried
from tests.simulation.invariants.only_what_was_asked import only_what_was_asked
from tests.simulation.invariants.reasoned_errors import reasoned_errors
from tests.simulation.invariants.refused_when_full import refused_when_full
from tests.simulation.invariants.resumes_where_it_stopped import resumes_where_it_stopped
from tests.simulation.invariants.returned_go_first import returned_go_first
from tests.simulation.invariants.right_image import right_image
from tests.simulation.invariants.runs_alone import runs_alone
from tests.simulation.invariants.true_depth import true_depth, wrong_depths
from tests.simulation.invariants.true_places import true_places
from tests.simulation.invariants.warm_first import warm_first
from tests.simulation.invariants.within_capacity import known_capacity, true_capacity
from tests.simulation.invariants.within_maximum import within_maximum
from tests.simulation.invariants.work_moves_on import work_moves_on

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer
    from tests.simulation.clients import ClientPeer
    from tests.simulation.network import Line
    from tests.simulation.peers import Peer
    from tests.simulation.workers import WorkerPeer
    from tests.simulation.world import World

CORES_DO_NOT_RAISE = "cores_do_not_raise"
"""Name of the invariant that has no function: no core raises an exception, whatever it receives."""


def on_finish(world: "World", client: "ClientPeer", key: bytes, outcome: Any) -> None:
    """Check a request that has ended with images (a tuple) or an error."""
    ask = one_answer(world, client, key, outcome)
    if isinstance(outcome, tuple):
        world.witness.outcomes["result"] += 1
        right_image(ask, outcome)
    else:
        world.witness.outcomes[outcome.code] += 1
        reasoned_errors(world, ask, outcome)


def on_work(world: "World", broker: "BrokerPeer", worker_id: bytes, work: Any) -> None:
    """Check a WORK that a broker sends to a worker."""
    fit_workers(world, broker, worker_id, work)
    known_capacity(world, broker, worker_id, work)
    attempts_grow(world, broker, work)
    acknowledged_is_over(world, broker, work)
    given_where_held(world, broker, worker_id, work)


def on_dispatch(broker: "BrokerPeer", worker_id: bytes, work: Any) -> None:
    """Check a dispatch before any message of this round is sent."""
    returned_go_first(broker, work)
    fair_share(broker, work)
    within_maximum(broker, work)
    warm_first(broker, worker_id, work)


def on_place(broker: "BrokerPeer", progress: Any) -> None:
    """Check a queue position that a broker sends in this round."""
    true_places(broker, progress)


def on_overload(world: "World", broker: "BrokerPeer", client_id: bytes, error: Any) -> None:
    """Check an `overloaded` error of a broker."""
    refused_when_full(world, broker, client_id, error)


def on_burial(world: "World", broker: "BrokerPeer", name: str, heard: float) -> None:
    """Check that a broker counts a peer as dead whose last message arrived at `heard`."""
    only_the_dead_are_buried(world, broker, name, heard)


def on_death(world: "World", worker: "WorkerPeer") -> None:
    """Start the checks for a worker that is about to be killed."""
    work_moves_on(world, worker, hung=False)


def on_hang(world: "World", worker: "WorkerPeer") -> None:
    """Start the checks for a worker whose device hangs from now on."""
    work_moves_on(world, worker, hung=True)


def on_batch(worker: "WorkerPeer", batch: list[bytes]) -> None:
    """Check a batch of these ids that a worker's device starts."""
    runs_alone(worker, batch)


def on_begun(world: "World", worker: "WorkerPeer", held: Any) -> None:
    """Check a request that a worker's device starts."""
    ask = None if held is None else world.witness.ask_of(held.id)
    if ask is not None:
        if not ask.begun:
            ask.first_begun = world.now
        ask.begun.append(worker)


def on_made(world: "World", worker: "WorkerPeer", request_id: bytes, images: tuple[bytes, ...]) -> None:
    """Check images that a worker has generated for a request."""
    if (ask := world.witness.ask_of(request_id)) is not None:
        ask.made.append(images)
    made_once(world, worker, request_id)


def on_inputs(world: "World", worker: "WorkerPeer", request_id: bytes, inputs: Sequence[Any]) -> None:
    """Check the input images that a worker has received for a request."""
    exact_inputs(world, worker, request_id, inputs)


def on_too_old(world: "World", worker: "WorkerPeer", request_id: bytes) -> None:
    """Check that a worker drops an answer because of its age."""
    no_answer_grows_old(world, worker, request_id, world.plan.held_seconds)


def on_fetch(peer: "Peer", fetch: Any, received: int) -> None:
    """Check a FETCH for a payload of which the process has received some bytes."""
    resumes_where_it_stopped(peer, fetch, received)


def on_asked(peer: "Peer", fetch: Any, outstanding: int) -> None:
    """Check a sent FETCH; `outstanding` includes its bytes and is for the connection."""
    asked_within_window(peer, fetch, outstanding)


def on_message_to_client(broker: "BrokerPeer", client_id: bytes, message: Any, frames: Any) -> None:
    """Check a message that a broker is about to send to a client."""
    if isinstance(message, Chunk):
        only_what_was_asked(broker, client_id, message, frames)
    elif isinstance(message, Result):
        small_inline(broker.world, message, frames)


def on_chunk_sent(world: "World", line: "Line") -> None:
    """Check a CHUNK that a broker has sent."""
    bounded_output(world, line)


def on_reconnect(world: "World", peer: "Peer", line: "Line") -> None:
    """Check that a process replaces a connection."""
    healthy_links_hold(world, peer, line)


def at_the_worker(world: "World", worker: "WorkerPeer") -> None:
    """Check a worker after each message."""
    true_capacity(world, worker)


def after_settle(world: "World", broker: "BrokerPeer") -> None:
    """Check a broker after a flush, before the messages are sent."""
    no_idle_room(broker)


def now_and_then(world: "World", broker: "BrokerPeer") -> None:
    """Run the expensive checks of a broker, from time to time."""
    books_agree(broker)
    bounded_tables(world, broker)
    bounded_input(broker)


def at_rest(world: "World") -> bool:
    """Return whether all requests have ended and all tables are empty."""
    return not world.witness.open and not any(leftovers(world)) and not any(wrong_depths(world))


def at_the_end(world: "World") -> None:
    """Run the final checks, long after the last fault."""
    unanswered(world)
    empty_tables(world)
    true_depth(world)
    nothing_requeued(world)
    for broker in world.brokers:
        if broker is not None:
            now_and_then(world, broker)
