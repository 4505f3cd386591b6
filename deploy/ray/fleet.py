"""Run `imagegen-worker` on the GPUs of an existing Ray cluster, and scale the workers with the queue.

    python -m deploy.ray.fleet --broker tcp://broker:5556 --stats http://broker:8080/stats --max 8 -- --model sdxl

Ray selects the nodes and restarts dead workers; this program sets their number, and drains workers to remove.
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
from deploy.ray.scaling import Policy, Scaler, backlog_seconds, queue_depths, select_to_drain
from imagegen_protocol import ProtocolError
from imagegen_protocol.statistics import Statistics, from_json

_log = logging.getLogger("imagegen.ray")
_STATS_SECONDS = 5.0
CANCELLED = 130


@dataclass(slots=True, eq=False)
class Worker:
    """One actor."""

    actor: Any
    status: ray.ObjectRef
    """Result of `Daemon.run`."""
    location: ray.ObjectRef
    """Result of `Daemon.location`."""
    node: str | None = None
    """Id of the node; None while the actor waits for a GPU."""
    name: str = ""
    """Name of the worker."""
    draining: bool = False
    """Whether the worker was told to drain."""


class Fleet:
    """The actors, and their scaling."""

    def __init__(self, command: Sequence[str]) -> None:
        ray.cloudpickle.register_pickle_by_value(daemon)  # so that the nodes need not have this package
        self._actor = ray.remote(num_gpus=1, num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=3)(
            daemon.Daemon
        )
        self._command = list(command)
        self._workers: list[Worker] = []
        self.permanent_failure: int | None = None
        """Exit status of a worker that failed permanently; None if none did."""

    @property
    def empty(self) -> bool:
        """Whether there are no workers, draining ones included."""
        return not self._workers

    def refresh(self) -> None:
        """Update the state of all workers; drain those on nodes that are about to leave."""
        for worker in [worker for worker in self._workers if _done(worker.status)]:
            self._workers.remove(worker)
            self._handle_exit(worker)
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        leaving = ray._private.state.state.get_draining_nodes()  # as Ray's own libraries do
        for worker in self._workers:
            if _done(worker.location):
                self._update_location(worker)
            if worker.node not in alive:
                worker.node = None
            if worker.node in leaving and not worker.draining:
                _log.info("node leaves, draining worker=%s node=%s", worker.name, worker.node)
                self._drain(worker)
            elif worker.draining and worker.node is None:
                self._drain(worker)

    def scale_to(self, target: int, depths: Mapping[str, int]) -> None:
        """Start or drain workers until `target` remain. `depths`: queue depth in images by worker name."""
        remaining = [worker for worker in self._workers if not worker.draining]
        if len(remaining) != target:
            _log.info("workers=%d target=%d", len(remaining), target)
        for _ in range(len(remaining), target):
            actor = self._actor.remote(self._command)
            self._workers.append(Worker(actor, actor.run.remote(), actor.location.remote()))
        depth = {worker: None if worker.node is None else depths.get(worker.name, 0) for worker in remaining}
        for worker in select_to_drain(remaining, max(len(remaining) - target, 0), depth):
            self._drain(worker)

    def _drain(self, worker: Worker) -> None:
        """Drain a worker; kill one that waits for a GPU."""
        worker.draining = True
        if worker.node is None:
            ray.kill(worker.actor)
        else:
            worker.actor.drain.remote()

    def _update_location(self, worker: Worker) -> None:
        try:
            worker.node, worker.name = ray.get(worker.location)
        except ray.exceptions.RayError:  # the actor was killed; `_handle_exit` logs it
            return
        worker.location = worker.actor.location.remote()

    def _handle_exit(self, worker: Worker) -> None:
        try:
            status = ray.get(worker.status)
        except ray.exceptions.RayError as error:
            level = logging.INFO if worker.draining else logging.ERROR
            _log.log(level, "actor ended worker=%s error=%s", worker.name, type(error).__name__)
            return
        _log.info("worker exited worker=%s status=%d", worker.name, status)
        if status in daemon.PERMANENT_FAILURES:
            self.permanent_failure = status


def _done(ref: ray.ObjectRef) -> bool:
    return bool(ray.wait([ref], timeout=0)[0])


def fetch_statistics(urls: Sequence[str]) -> list[Statistics] | None:
    """Return the statistics of each broker; None if a broker does not answer, so that the backlog is unknown."""
    statistics = []
    for url in urls:
        try:
            with urllib.request.urlopen(url, timeout=_STATS_SECONDS) as answer:
                statistics.append(from_json(answer.read()))
        except (OSError, ValueError, ProtocolError) as error:
            _log.warning("no statistics url=%s error=%s", url, error)
            return None
    return statistics


@click.command(context_settings={"show_default": True})
@click.option("--address", default="auto", help="Address of the Ray cluster.")
@click.option("--broker", multiple=True, required=True, help="Endpoint of a broker's backend; repeatable.")
@click.option(
    "--stats",
    multiple=True,
    default=("http://127.0.0.1:8080/stats",),
    help="URL of a broker's /stats; repeatable, backlogs are summed.",
)
@click.option("--model", "served", help="Count only the backlog of this model.  [default: all models]")
@click.option("--min", "least", type=click.IntRange(0), default=0, help="Minimum number of workers.")
@click.option("--max", "most", type=click.IntRange(1), required=True, help="Maximum number of workers.")
@click.option(
    "--work-off", type=click.FloatRange(0.1), default=60.0, help="Target seconds for finishing the queue."
)
@click.option(
    "--shrink-after",
    type=click.FloatRange(0),
    default=300.0,
    help="Seconds of lower demand before workers are drained.",
)
@click.option("--look-every", type=click.FloatRange(0.1), default=5.0, help="Seconds between two updates.")
@click.option("--program", default="imagegen-worker", help="Program of the worker on each node.")
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
    """Run imagegen workers on the GPUs of a Ray cluster, and scale them with the brokers' queues.

    OPTIONS, after --, are those of imagegen-worker. SIGTERM or Ctrl-C drains all workers and exits; a second one
    exits at once. The exit status is 0, or that of a worker that failed permanently.
    """
    if least > most:
        raise click.UsageError(f"--min must be at most --max ({most}), got {least}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    ray.init(address=address, log_to_driver=False)
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # after ray.init, which sets its own handlers
        signal.signal(number, lambda *_: sys.exit(CANCELLED) if stop.is_set() else stop.set())
    brokers = [word for endpoint in broker for word in ("--broker", endpoint)]
    fleet = Fleet([program, *brokers, *options])
    scaler = Scaler(Policy(least=least, most=most, work_off=work_off, shrink_after=shrink_after))
    while not stop.is_set():
        fleet.refresh()
        if fleet.permanent_failure is not None:
            break
        statistics = fetch_statistics(stats)
        backlog = None if statistics is None else sum(backlog_seconds(each, served) for each in statistics)
        depths = {name: depth for each in statistics or () for name, depth in queue_depths(each).items()}
        fleet.scale_to(scaler.target(backlog, time.monotonic()), depths)
        stop.wait(look_every)
    _log.info("draining all workers")
    fleet.scale_to(0, {})
    while not fleet.empty:
        Event().wait(min(look_every, 1.0))
        fleet.refresh()
    sys.exit(fleet.permanent_failure or 0)


if __name__ == "__main__":
    main()
