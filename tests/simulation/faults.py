"""The faults. Each function returns whether there was a process to inject the fault into."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.simulation import invariants
from tests.simulation.network import DOWN, UP, Link
from tests.simulation.plan import Fault

if TYPE_CHECKING:
    from tests.simulation.workers import WorkerPeer
    from tests.simulation.world import World

SOCKET_TIMEOUT = 6.0
"""Seconds after which libzmq closes a dead connection."""


def _worker(world: "World", target: int) -> "WorkerPeer | None":
    living = [worker for worker in world.workers if worker is not None and worker.alive]
    return living[target % len(living)] if living else None


def _link(world: "World", target: int) -> Link | None:
    links = [link for link in world.network.links.values() if not link.closed]
    return links[target % len(links)] if links else None


# ---- deaths ------------------------------------------------------------------------------------------------


def kill_broker(world: "World", fault: Fault) -> bool:
    """Kill a broker (SIGKILL); it is restarted."""
    index = fault.target % world.plan.brokers
    was_running = world.brokers[index] is not None
    world.kill_broker(index, fault.seconds)
    return was_running


def kill_worker(world: "World", fault: Fault) -> bool:
    """Kill a worker (SIGKILL); the kernel closes its connections."""
    if (worker := _worker(world, fault.target)) is None:
        return False
    world.kill_worker(worker, fault.seconds, silently=False)
    return True


def unplug_worker(world: "World", fault: Fault) -> bool:
    """Power off the host of a worker: its connections are not closed."""
    if (worker := _worker(world, fault.target)) is None:
        return False
    world.kill_worker(worker, fault.seconds, silently=True)
    return True


def kill_client(world: "World", fault: Fault) -> bool:
    """Kill a client (SIGKILL)."""
    client = world.clients[fault.target % len(world.clients)]
    if not client.alive:
        return False
    world.log(f"{client.name} is killed")
    client.kill()
    world.replace_client(client, fault.seconds)
    return True


def close_client(world: "World", fault: Fault) -> bool:
    """Close a client with GOODBYE."""
    client = world.clients[fault.target % len(world.clients)]
    if not client.alive or client.frozen:
        return False
    world.log(f"{client.name} is closed")
    client.close()
    world.replace_client(client, fault.seconds)
    return True


# ---- the network -------------------------------------------------------------------------------------------


def cut(world: "World", fault: Fault) -> bool:
    """Cut a link in one or both directions: messages are delayed to the end of the cut, or dropped."""
    if (link := _link(world, fault.target)) is None:
        return False
    directions = ((UP,), (DOWN,), (UP, DOWN))[fault.variant % 3]
    drops = bool(fault.variant & 4)
    end = world.now + fault.seconds
    way = {(UP,): "to the broker", (DOWN,): "from the broker"}.get(directions, "both ways")
    world.log(
        f"the link {link.dialer.name} - {link.name} {'drops' if drops else 'is stalled'} {way} until {end:.3f}"
    )
    for direction in directions:
        until = link.dropped_until if drops else link.stalled_until
        until[direction] = max(until[direction], end)
    world.network.record_fault(link, end + 0.05)
    if not drops and fault.seconds > SOCKET_TIMEOUT:
        # The sockets detect the cut and reconnect after it.
        world.after(SOCKET_TIMEOUT, lambda: world.network.reset(link, keep=False))
    return True


def reconnect(world: "World", fault: Fault) -> bool:
    """Break a connection, which is reopened. Messages in transit to the broker may arrive after later ones."""
    if (link := _link(world, fault.target)) is None or link.broker is None:
        return False
    keep = bool(fault.variant & 1)
    world.log(
        f"the link {link.dialer.name} - {link.name} reconnects{', keeping messages in transit' if keep else ''}"
    )
    world.network.reset(link, keep=keep)
    return True


def lose(world: "World", fault: Fault) -> bool:
    """Lose each message with some probability for some time."""
    network = world.network
    chance = (0.01, 0.05, 0.15)[fault.variant % 3]
    world.log(f"messages are lost, {chance:.0%}, for {fault.seconds:.3f} s")
    network.loss = max(network.loss, chance)

    def mend() -> None:
        network.loss = 0.0

    world.after(fault.seconds, mend)
    return True


# ---- freezes -----------------------------------------------------------------------------------------------


def freeze_broker(world: "World", fault: Fault) -> bool:
    """Freeze a broker (SIGSTOP, later SIGCONT)."""
    broker = world.brokers[fault.target % world.plan.brokers]
    if broker is None:
        return False
    world.log(f"{broker.name} freezes for {fault.seconds:.3f} s")
    broker.freeze(fault.seconds)
    if fault.seconds > SOCKET_TIMEOUT and fault.variant & 1:

        def wake() -> None:
            for link in list(broker.links.values()):
                world.network.reset(link, keep=bool(fault.variant & 2))

        world.after(fault.seconds - 0.001, wake)
    return True


def freeze_worker(world: "World", fault: Fault) -> bool:
    """Freeze a worker and its device (SIGSTOP, later SIGCONT)."""
    if (worker := _worker(world, fault.target)) is None:
        return False
    world.log(f"{worker.name} freezes for {fault.seconds:.3f} s")
    worker.freeze(fault.seconds)
    if fault.seconds > SOCKET_TIMEOUT:
        for link in worker.links:
            world.after(SOCKET_TIMEOUT, lambda link=link: world.network.reset(link, keep=bool(fault.variant & 1)))
    return True


def freeze_client(world: "World", fault: Fault) -> bool:
    """Freeze a client (SIGSTOP, later SIGCONT)."""
    client = world.clients[fault.target % len(world.clients)]
    if not client.alive:
        return False
    world.log(f"{client.name} freezes for {fault.seconds:.3f} s")
    client.freeze(fault.seconds)
    return True


def hang_device(world: "World", fault: Fault) -> bool:
    """Let a worker's device hang; its heartbeats continue."""
    if (worker := _worker(world, fault.target)) is None:
        return False
    world.log(f"the device of {worker.name} hangs for {fault.seconds:.3f} s")
    worker.hung_until = max(worker.hung_until, world.now + fault.seconds)
    worker.last_fault = max(worker.last_fault, worker.hung_until)
    invariants.on_device_hang(world, worker)
    return True


def slow_client(world: "World", fault: Fault) -> bool:
    """Let a client read slowly for some time; it continues to submit."""
    client = world.clients[fault.target % len(world.clients)]
    if not client.alive:
        return False
    world.log(f"{client.name} reads slowly for {fault.seconds:.3f} s")
    client.slow_until = max(client.slow_until, world.now + fault.seconds)
    client.last_fault = max(client.last_fault, client.slow_until + 1.0)
    return True


def omit_acks(world: "World", fault: Fault) -> bool:
    """Let a client acknowledge nothing for some time; it continues to submit and to send heartbeats."""
    client = world.clients[fault.target % len(world.clients)]
    if not client.alive:
        return False
    world.log(f"{client.name} acknowledges nothing for {fault.seconds:.3f} s")
    client.no_acks_until = max(client.no_acks_until, world.now + fault.seconds)
    client.last_fault = max(client.last_fault, client.no_acks_until + 1.0)
    return True


def greedy_client(world: "World", fault: Fault) -> bool:
    """Let a client request far more bytes than its window, and read slowly."""
    client = world.clients[fault.target % len(world.clients)]
    if not client.alive:
        return False
    world.log(f"{client.name} requests too many bytes for {fault.seconds:.3f} s")
    client.slow_until = max(client.slow_until, world.now + fault.seconds)
    client.greedy_until = max(client.greedy_until, world.now + fault.seconds)
    client.is_greedy = True
    client.ask_for_too_much()
    client.last_fault = max(client.last_fault, client.slow_until + 1.0)
    return True


# ---- upgrades ----------------------------------------------------------------------------------------------


def drain_worker(world: "World", fault: Fault) -> bool:
    """Send SIGTERM to a worker; when it has exited, another one starts."""
    if (worker := _worker(world, fault.target)) is None:
        return False
    world.log(f"{worker.name} is drained")
    worker.when_awake(worker.drain)
    return True


def drain_all_workers(world: "World", fault: Fault) -> bool:
    """Send SIGTERM to all workers at once."""
    for worker in world.workers:
        if worker is not None and worker.alive:
            worker.when_awake(worker.drain)
    world.log("all workers are drained")
    return True


FAULTS: dict[str, Callable[["World", Fault], bool]] = {
    fault.__name__: fault
    for fault in (
        kill_broker,
        kill_worker,
        unplug_worker,
        kill_client,
        close_client,
        cut,
        reconnect,
        lose,
        freeze_broker,
        freeze_worker,
        freeze_client,
        hang_device,
        slow_client,
        omit_acks,
        greedy_client,
        drain_worker,
        drain_all_workers,
    )
}
