"""What a scrape of the broker's metrics costs: in its one loop, and for a request that comes meanwhile.

Run it as `python -m benchmarks.scrape`. A core with workers and waiting requests tells what the loop does for a
scrape; a real broker with as many sockets tells how long requests take to reach a worker, scraped or not.
"""

import os
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
import zmq
from prometheus_client import CollectorRegistry, generate_latest

from imagegen_broker.core.broker import BrokerCore
from imagegen_broker.core.events import FLUSH, ReceivedFromClient, ReceivedFromWorker
from imagegen_broker.core.records import Settings
from imagegen_broker.metrics import BrokerCollector
from imagegen_broker.server import Snapshot
from imagegen_common.command_line import IntegerRange, NumberRange
from imagegen_protocol.frames import decode_broker_to_worker, encode
from imagegen_protocol.messages import Ack, BrokerHeartbeat, Ready, Result, Submit, Work, WorkerHeartbeat
from tools.fleet import Fleet

_CLIENTS = 100


def _ready(number: int, models: int = 1) -> Ready:
    return Ready(
        worker_id=number.to_bytes(16, "big"),
        name=f"host{number // 8}-gpu{number % 8}",
        host=f"host{number // 8}",
        gpu_id=number % 8,
        device="cuda:0",
        backend="none",
        models=["busy" if number == 0 else "free", *(f"model-{other}" for other in range(1, models))],
        capacity=16,
        max_batch_size=8,
    )


def cost_of_a_scrape(workers: int, waiting: int, models: int, repeats: int = 200) -> tuple[float, float]:
    """Return the median seconds of a core that the loop spends on a scrape, and that the HTTP thread does."""
    core = BrokerCore(Settings(epoch=bytes(16)), 0.0)
    for number in range(workers):
        ready = _ready(number, models)
        core.handle(ReceivedFromWorker(ready.worker_id, ready, encode(ready)), 10.0)
    for number in range(waiting):
        submit = Submit(request_id=number.to_bytes(16, "big"), model="busy")
        core.handle(ReceivedFromClient((number % _CLIENTS).to_bytes(2, "big"), submit, [b"body"]), 10.0)
    core.handle(FLUSH, 10.0)
    in_loop, rendering = [], []
    for _ in range(repeats):
        begun = time.thread_time()
        view = Snapshot.of(core, 10.0)
        told = time.thread_time()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(BrokerCollector(view))
        generate_latest(registry)
        in_loop.append(told - begun)
        rendering.append(time.thread_time() - told)
    return statistics.median(in_loop), statistics.median(rendering)


class Peers:
    """As many workers as are wanted and one client, all on one thread, without any work between them."""

    def __init__(self, fleet: Fleet, workers: int) -> None:
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, workers + 64)
        self._poller = zmq.Poller()
        self._workers = {}
        for number in range(workers):
            socket = self._dial(next(iter(fleet.brokers.values())).backend)
            self._workers[socket] = _ready(number)
            socket.send(encode(_ready(number)))
        self._client = self._dial(fleet.frontend)

    def _dial(self, endpoint: str) -> "zmq.Socket[bytes]":
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(endpoint)
        self._poller.register(socket, zmq.POLLIN)
        return socket

    def dispatch(self) -> float:
        """Send a request; return the seconds until a worker has it."""
        request_id = os.urandom(16)
        begun = time.perf_counter()
        self._client.send_multipart([encode(Submit(request_id=request_id, model="free")), b"body"])
        while True:
            for socket, _ in self._poller.poll(10_000):
                header, *_ = socket.recv_multipart()
                if socket is self._client or not self._heard(socket, header, request_id):
                    continue
                seconds = time.perf_counter() - begun
                self._client.send(encode(Ack(request_ids=[request_id])))
                return seconds

    def _heard(self, socket: "zmq.Socket[bytes]", header: bytes, request_id: bytes) -> bool:
        match decode_broker_to_worker(header):
            case BrokerHeartbeat(session=session, beat=beat) if session:
                socket.send(encode(WorkerHeartbeat(session=session, beat=beat, seconds_per_image=0.5)))
            case Work(request_id=given) if given == request_id:
                ready = self._workers[socket]
                answer = Result(request_id=given, worker=ready.name, model="free", images=[])
                socket.send_multipart([encode(answer), b"image"])
                return True
        return False

    def close(self) -> None:
        """Close all sockets."""
        self._context.destroy(0)


@contextmanager
def scraping(url: str, a_second: float) -> Iterator[Callable[[], int]]:
    """Scrape so many times a second meanwhile; yields a function that tells how many there were."""
    over, count = threading.Event(), [0]

    def scrape() -> None:
        while not over.wait(1 / a_second):
            with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
                answer.read()
            count[0] += 1

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield lambda: count[0]
    finally:
        over.set()
        thread.join()


@click.command()
@click.option("--workers", type=IntegerRange(2), default=200, show_default=True)
@click.option("--models", type=IntegerRange(1), default=1, show_default=True, help="Of each worker.")
@click.option("--waiting", type=IntegerRange(0), default=5000, show_default=True, help="Requests that wait.")
@click.option("--requests", type=IntegerRange(10), default=2000, show_default=True, help="Sent for each figure.")
@click.option("--scrapes", type=NumberRange(min=0.1), default=10, show_default=True, help="A second.")
def main(workers: int, models: int, waiting: int, requests: int, scrapes: float) -> None:
    """Measure what scraping the broker costs."""
    in_loop, rendering = cost_of_a_scrape(workers, waiting, models)
    click.echo(f"one scrape, {workers} workers and {waiting} requests that wait, {models} models a worker:")
    click.echo(f"  in the loop {in_loop * 1e3:.2f} ms, on the HTTP thread {rendering * 1e3:.2f} ms")
    with Fleet() as fleet:
        fleet.start_broker("--heartbeat-interval", "1", "--log-level", "error")
        peers = Peers(fleet, workers)
        for _ in range(200):  # the grace of a new broker ends, and all are registered
            peers.dispatch()
        click.echo(f"from SUBMIT to a worker, of {requests} requests one by one:")
        for turn in range(2):
            _report(f"no scrapes ({turn + 1})", [peers.dispatch() for _ in range(requests)])
            with scraping(fleet.http, scrapes) as count:
                times = [peers.dispatch() for _ in range(requests)]
                _report(f"{count()} scrapes ({turn + 1})", times)
        peers.close()


def _report(name: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    median, late, worst = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100], ordered[-1]
    click.echo(f"  {name:16} median {median * 1e3:.2f} ms, 99 % {late * 1e3:.2f} ms, worst {worst * 1e3:.2f} ms")


if __name__ == "__main__":
    main()
