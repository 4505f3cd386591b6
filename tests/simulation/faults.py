"""The faults. Each function returns whether there was a process to inject the fault into."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.simulation import invariants
from tests.simulation.network import DOWN, UP, Line
from tests.simulation.plan import Fault

if TYPE_CHECKING:
    from tests.simulation.workers import WorkerPeer
    from tests.simulation.world import World

SOCKET_PATIENCE = 6.0
"""Seconds after which libzmq closes a dead connection."""


def _worker(world: "World", who: int) -> "WorkerPeer | None":
    living = [worker for worker in world.workers if worker is not None and worker.alive]
    return living[who % len(living)] if living else None


def _line(world: "World", who: int) -> Line | None:
    lines = [line for line in world.network.lines.values() if not line.closed]
    return lines[who % len(lines)] if lines else None


# ---- deaths ------------------------------------------------------------------------------------------------


def kill_broker(world: "World", fault: Fault) -> bool:
    """Kill a broker (SIGKILL); it is restarted."""
    index = fault.who % world.plan.brokers
    struck = world.brokers[index] is not None
    world.kill_broker(index, fault.seconds)
    return struck


def kill_worker(world: "World", fault: Fault) -> bool:
    """Kill a worker (SIGKILL); the kernel closes its connections."""
    if (worker := _worker(world, fault.who)) is None:
        return False
    world.kill_worker(worker, fault.seconds, silently=False)
    return True


def vanish_worker(world: "World", fault: Fault) -> bool:
    """Power off the host of a worker: its connections are not closed."""
    if (worker := _worker(world, fault.who)) is None:
        return False
    world.kill_worker(worker, fault.seconds, silently=True)
    return True


def kill_client(world: "World", fault: Fault) -> bool:
    """Kill a client (SIGKILL)."""
    client = world.clients[fault.who % len(world.clients)]
    if not client.alive:
        return False
    world.tell(f"{client.name} is killed")
    client.die()
    world.replace_client(client, fault.seconds)
    return True


def close_client(world: "World", fault: Fault) -> bool:
    """Close a client with GOODBYE."""
    client = world.clients[fault.who % len(world.clients)]
    if not client.alive or client.frozen:
        return False
    world.tell(f"{client.name} leaves")
    client.close()
    world.replace_client(client, fault.seconds)
    return True


# ---- the network -------------------------------------------------------------------------------------------


def cut(world: "World", fault: Fault) -> bool:
    """Cut a link in one or both directions: messages are delayed to the end of the cut, or dropped."""
    if (line := _line(world, fault.who)) is None:
        return False
    directions = ((UP,), (DOWN,), (UP, DOWN))[fault.flavour % 3]
    drops = bool(fault.flavour & 4)
    end = world.now + fault.seconds
    way = {(UP,): "to the broker", (DOWN,): "from the broker"}.get(directions, "both ways")
    world.tell(f"the link {line.dialer.name} - {line.name} {'drops' if drops else 'stands'} {way} until {end:.3f}")
    for direction in directions:
        until = line.dropped_until if drops else line.stalled_until
        until[direction] = max(until[direction], end)
    world.network.in_trouble(line, end + 0.05)
    if not drops and fault.seconds > SOCKET_PATIENCE:
        # The sockets detect the cut and reconnect after it.
        world.after(SOCKET_PATIENCE, lambda: world.network.reset(line, keep=False))
    return True


def reconnect(world: "World", fault: Fault) -> bool:
    """Break a connection, which is reopened. Messages in transit to the broker may arrive after later ones."""
    if (line := _line(world, fault.who)) is None or line.broker is None:
        return False
    keep = bool(fault.flavour & 1)
    world.tell(f"the link {line.dialer.name} - {line.name} reconnects{', old messages come late' if keep else ''}")
    world.network.reset(line, keep=keep)
    return True


def lose(world: "World", fault: Fault) -> bool:
    """Lose each message with some probability for some time."""
    network = world.network
    chance = (0.01, 0.05, 0.15)[fault.flavour % 3]
    world.tell(f"messages are lost, {chance:.0%}, for {fault.seconds:.3f} s")
    network.loss = max(network.loss, chance)

    def mend() -> None:
        network.loss = 0.0

    world.after(fault.seconds, mend)
    return True


# ---- freezes -----------------------------------------------------------------------------------------------


def freeze_broker(world: "World", fault: Fault) -> bool:
    """Freeze a broker (SIGSTOP, later SIGCONT)."""
    broker = world.brokers[fault.who % world.plan.brokers]
    if broker is None:
        return False
    world.tell(f"{broker.name} freezes for {fault.seconds:.3f} s")
    broker.freeze(fault.seconds)
    if fault.seconds > SOCKET_PATIENCE and fault.flavour & 1:

        def wake() -> None:
            for line in list(broker.lines.values()):
                world.network.reset(line, keep=bool(fault.flavour & 2))

        world.after(fault.seconds - 0.001, wake)
    return True


def freeze_worker(world: "World", fault: Fault) -> bool:
    """Freeze a worker and its device (SIGSTOP, later SIGCONT)."""
    if (worker := _worker(world, fault.who)) is None:
        return False
    world.tell(f"{worker.name} freezes for {fault.seconds:.3f} s")
    worker.freeze(fault.seconds)
    if fault.seconds > SOCKET_PATIENCE:
        for line in worker.lines:
            world.after(SOCKET_PATIENCE, lambda line=line: world.network.reset(line, keep=bool(fault.flavour & 1)))
    return True


def freeze_client(world: "World", fault: Fault) -> bool:
    """Freeze a client (SIGSTOP, later SIGCONT)."""
    client = world.clients[fault.who % len(world.clients)]
    if not client.alive:
        return False
    world.tell(f"{client.name} freezes for {fault.seconds:.3f} s")
    client.freeze(fault.seconds)
    return True


def hang_device(world: "World", fault: Fault) -> bool:
    """Let a worker's device hang; its heartbeats continue."""
    if (worker := _worker(world, fault.who)) is None:
        return False
    world.tell(f"the device of {worker.name} hangs for {fault.seconds:.3f} s")
    worker.hung_until = max(worker.hung_until, world.now + fault.seconds)
    worker.trouble = max(worker.trouble, worker.hung_until)
    invariants.on_hang(world, worker)
    return True


def slow_client(world: "World", fault: Fault) -> bool:
    """Let a client read slowly for some time; it continues to submit."""
    client = world.clients[fault.who % len(world.clients)]
    if not client.alive:
        return False
    world.tell(f"{client.name} reads slowly for {fault.seconds:.3f} s")
    client.slow_until = max(client.slow_until, world.now + fault.seconds)
    client.trouble = max(client.trouble, client.slow_until + 1.0)
    return True


def mute_client(world: "World", fault: Fault) -> bool:
    """Let a client acknowledge nothing for some time; it continues to submit and to send heartbeats."""
    client = world.clients[fault.who % len(world.clients)]
    if not client.alive:
        return False
    world.tell(f"{client.name} acknowledges nothing for {fault.seconds:.3f} s")
    client.mute_until = max(client.mute_until, world.now + fault.seconds)
    client.trouble = max(client.trouble, client.mute_until + 1.0)
    return True


def greedy_client(world: "World", fault: Fault) -> bool:
    """Let a client request far more bytes than its window, and read slowly."""
    client = world.clients[fault.who % len(world.clients)]
    if not client.alive:
        return False
    world.tell(f"{client.name} asks for too much for {fault.seconds:.3f} s")
    client.slow_until = max(client.slow_until, world.now + fault.seconds)
    client.greedy_until = max(client.greedy_until, world.now + fault.seconds)
    client.is_greedy = True
    client.ask_for_too_much()
    client.trouble = max(client.trouble, client.slow_until + 1.0)
    return True


# ---- upgrades ----------------------------------------------------------------------------------------------


def drain_worker(world: "World", fault: Fault) -> bool:
    """Send SIGTERM to a worker; when it has exited, another one starts."""
    if (worker := _worker(world, fault.who)) is None:
        return False
    world.tell(f"{worker.name} is asked to drain")
    worker.when_awake(worker.drain)
    return True


def drain_all_workers(world: "World", fault: Fault) -> bool:
    """Send SIGTERM to all workers at once."""
    for worker in world.workers:
        if worker is not None and worker.alive:
            worker.when_awake(worker.drain)
    world.tell("all workers are asked to drain")
    return True


FAULTS: dict[str, Callable[["World", Fault], bool]] = {
    fault.__name__: fault
    for fault in (
        kill_broker,
        kill_worker,
        vanish_worker,
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
        mute_client,
        greedy_client,
        drain_worker,
        drain_all_workers,
    )
}
