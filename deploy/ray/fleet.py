"""Run one `imagegen-worker` per GPU on an existing Ray cluster, as many as the queue needs.

    python -m deploy.ray.fleet --broker tcp://broker:5556 --stats http://broker:8080/stats --max 8 -- --model sdxl

Ray selects the nodes and restarts failed actors; this program sets their number and drains removed workers.
"""

import logging
import signal
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

import click
import ray

from deploy.ray import daemon
from deploy.ray.scaling import Policy, Scaler, backlog_seconds, first_to_go, queue_depths
from imagegen_protocol import ProtocolError
from imagegen_protocol.statistics import Statistics, from_json

_log = logging.getLogger("imagegen.ray")
_STATS_SECONDS = 5.0
CANCELLED = 130


@dataclass(slots=True, eq=False)
class Worker:
    """One actor. `node` is None while it waits for a GPU."""

    actor: Any
    running: ray.ObjectRef
    asked: ray.ObjectRef
    node: str | None = None
    name: str = ""
    leaving: bool = False


class Fleet:
    """The actors, and the operations that set their number."""

    def __init__(self, command: Sequence[str]) -> None:
        ray.cloudpickle.register_pickle_by_value(daemon)  # the nodes may lack this program
        self._actor = ray.remote(num_gpus=1, num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=3)(
            daemon.Daemon
        )
        self._command = list(command)
        self._workers: list[Worker] = []
        self.failed_status: int | None = None
        """Exit status of a daemon that failed permanently, as every other one would; None otherwise."""

    @property
    def empty(self) -> bool:
        """Whether no worker is left, including draining ones."""
        return not self._workers

    def look(self) -> None:
        """Update ended workers and the nodes of the others; drain workers on nodes that are being removed."""
        for worker in [worker for worker in self._workers if _done(worker.running)]:
            self._workers.remove(worker)
            self._take_end(worker)
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        going = ray._private.state.state.get_draining_nodes()  # the function that Ray's own libraries use
        for worker in self._workers:
            if _done(worker.asked):
                self._take_place(worker)
            if worker.node not in alive:
                worker.node = None
            if worker.node in going and not worker.leaving:
                _log.info("node is being removed, draining worker=%s node=%s", worker.name, worker.node)
                self._let_go(worker)
            elif worker.leaving and worker.node is None:
                self._let_go(worker)

    def bring_to(self, target: int, depths: Mapping[str, int]) -> None:
        """Start or drain workers until `target` remain; `depths` has the images at each worker, by name."""
        staying = [worker for worker in self._workers if not worker.leaving]
        if len(staying) != target:
            _log.info("workers=%d target=%d", len(staying), target)
        for _ in range(len(staying), target):
            actor = self._actor.remote(self._command)
            self._workers.append(Worker(actor, actor.run.remote(), actor.place.remote()))
        depth = {worker: None if worker.node is None else depths.get(worker.name, 0) for worker in staying}
        for worker in first_to_go(staying, len(staying) - target, depth) if len(staying) > target else ():
            self._let_go(worker)

    def _let_go(self, worker: Worker) -> None:
        """Drain a worker, or kill it if it still waits for a GPU."""
        worker.leaving = True
        if worker.node is None:
            ray.kill(worker.actor)
        else:
            worker.actor.drain.remote()

    def _take_place(self, worker: Worker) -> None:
        try:
            worker.node, worker.name = ray.get(worker.asked)
        except ray.exceptions.RayError:  # killed; `running` reports it, too
            return
        worker.asked = worker.actor.place.remote()

    def _take_end(self, worker: Worker) -> None:
        try:
            status = ray.get(worker.running)
        except ray.exceptions.RayError as error:
            level = logging.INFO if worker.leaving else logging.ERROR
            _log.log(level, "actor ended worker=%s error=%s", worker.name, type(error).__name__)
            return
        _log.info("worker ended worker=%s status=%d", worker.name, status)
        if status in daemon.PERMANENT_FAILURES:
            self.failed_status = status


def _done(ref: ray.ObjectRef) -> bool:
    return bool(ray.wait([ref], timeout=0)[0])


def ask(urls: Sequence[str]) -> list[Statistics] | None:
    """Return the statistics of each broker; None if one does not answer, because the backlog is then unknown."""
    told = []
    for url in urls:
        try:
            with urllib.request.urlopen(url, timeout=_STATS_SECONDS) as answer:
                told.append(from_json(answer.read()))
        except (OSError, ValueError, ProtocolError) as error:
            _log.warning("no statistics from %s: %s", url, error)
            return None
    return told


@click.command(context_settings={"show_default": True})
@click.option("--address", default="auto", help="Address of the Ray cluster.")
@click.option(
    "--broker", multiple=True, required=True, help="Endpoint of a broker's backend; may be given several times."
)
@click.option(
    "--stats",
    multiple=True,
    default=("http://127.0.0.1:8080/stats",),
    help="/stats of a broker; may be given several times: the backlogs are added.",
)
@click.option("--model", "served", help="Count only the backlog of this model.  [default: all models]")
@click.option("--min", "least", type=click.IntRange(0), default=0, help="Minimum number of workers.")
@click.option("--max", "most", type=click.IntRange(1), required=True, help="Maximum number of workers.")
@click.option(
    "--work-off", type=click.FloatRange(0.1), default=60.0, help="Seconds in which to process the queue."
)
@click.option(
    "--shrink-after",
    type=click.FloatRange(0),
    default=300.0,
    help="Seconds of lower demand before workers are removed.",
)
@click.option("--look-every", type=click.FloatRange(0.1), default=5.0, help="Seconds between two updates.")
@click.option("--program", default="imagegen-worker", help="Program of the daemon on each node.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(
    address: str,
    broker: tuple[str, ...],
    stats: tuple[str, ...],
    served: str | None,
    least: int,
    most: int,
    work_off: float,
    shrink_after: float,
    look_every: float,
    program: str,
    options: tuple[str, ...],
) -> None:
    """Keep imagegen workers on the GPUs of a Ray cluster, as many as the brokers' queues need.

    OPTIONS, after --, are options of imagegen-worker. SIGTERM or Ctrl-C drains all workers and exits; a second one
    exits at once. The exit status is 0, or that of a worker whose settings or model can't work.
    """
    if least > most:
        raise click.UsageError(f"--min must not be more than --max ({most}), got {least}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    ray.init(address=address, log_to_driver=False)
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # after Ray, which sets its own handlers
        signal.signal(number, lambda *_: sys.exit(CANCELLED) if stop.is_set() else stop.set())
    brokers = [word for endpoint in broker for word in ("--broker", endpoint)]
    fleet = Fleet([program, *brokers, *options])
    scaler = Scaler(Policy(least=least, most=most, work_off=work_off, shrink_after=shrink_after))
    while not stop.is_set():
        fleet.look()
        if fleet.failed_status is not None:
            break
        told = ask(stats)
        backlog = None if told is None else sum(backlog_seconds(one, served) for one in told)
        depths = {name: depth for one in told or () for name, depth in queue_depths(one).items()}
        fleet.bring_to(scaler.target(backlog, time.monotonic()), depths)
        stop.wait(look_every)
    _log.info("draining all workers")
    fleet.bring_to(0, {})
    while not fleet.empty:
        Event().wait(min(look_every, 1.0))
        fleet.look()
    sys.exit(fleet.failed_status or 0)


if __name__ == "__main__":
    main()
