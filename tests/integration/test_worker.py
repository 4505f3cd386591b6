"""The worker as a process, against a broker made of nothing but `zmq` and `msgpack`: docs/protocol.md §5."""

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import msgpack
import psutil
import pytest
import zmq

PATIENCE_MS = 60_000
COMMAND = (str(Path(sys.executable).with_name("imagegen-worker")),)
QUICK = ("--simulated-batch-seconds", "0", "--simulated-image-seconds", "0")
ENDLESS = ("--simulated-batch-seconds", "3600", "--simulated-image-seconds", "0", "--max-batch-size", "1")
MANY_STEPS = {"num_inference_steps": 1000}
"""In an endless batch one step takes 3.6 s, in one of 20 s it takes 0.02 s: so soon is a stop noticed."""

BROKEN = """
import threading
import imagegen_worker.backends.factory as make
from imagegen_worker.backends import DeviceLostError, DeviceMemoryError, StartError
from imagegen_worker.backends.simulated import SimulatedBackend
from imagegen_worker.cli import main

class Backend(SimulatedBackend):
    def {method}(self, *arguments):
        {body}

make.make_backend = lambda *_: Backend(worker="w", batch_seconds=0, image_seconds=0, max_batch_size=1)
main()
"""


def broken(method, body):
    """A command whose backend is broken in one place."""
    return (sys.executable, "-c", BROKEN.format(method=method, body=body))


class Worker:
    """A worker process and its log."""

    def __init__(self, command):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("IMAGEGEN_")}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.lines = []

    def line(self, words):
        """Read the log up to the line that has these words in it."""
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if words in line:
                return line
        raise AssertionError(f"{words!r} never came:\n" + "\n".join(self.lines))

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def end(self):
        """Wait for the end; return the status."""
        self.lines += self.process.stderr.read().splitlines()
        return self.process.wait(60)

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()


class Broker:
    """A ROUTER that speaks maps with the one worker that dials it."""

    def __init__(self, context, endpoint="tcp://127.0.0.1:0"):
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(endpoint)
        self.endpoint = self.socket.get_string(zmq.LAST_ENDPOINT)
        self.peer = b""
        self.beats = 0

    def send(self, kind, *frames, **fields):
        self.socket.send_multipart([self.peer, msgpack.packb({"type": kind, "v": 2, **fields}), *frames])

    def receive(self, *kinds):
        """Return the next message of these kinds, others skipped: its header, and its frames under `frames`."""
        while True:
            assert self.socket.poll(PATIENCE_MS), f"no {' or '.join(kinds)} came"
            self.peer, header, *frames = self.socket.recv_multipart()
            message = msgpack.unpackb(header)
            assert message["v"] == 2
            if message["type"] in kinds:
                return {**message, "frames": frames}

    def beat(self, session=1, epoch=b"e" * 16):
        """So short an interval that nothing is waited for, and so much patience that nobody is taken for dead."""
        self.beats += 1
        self.send("heartbeat", epoch=epoch, session=session, beat=self.beats, interval_seconds=0.05, liveness=1000)

    def register(self, **fields):
        ready = self.receive("ready")
        self.beat(**fields)
        return ready

    def work(self, request_id, body=None, **fields):
        packed = msgpack.packb({"prompt": "p", "seed": 7, **(body or {})})
        self.send("work", packed, request_id=request_id, **fields)
        return request_id

    def heartbeat(self, holds):
        """Wait for a heartbeat of which something holds."""
        while not holds(beat := self.receive("heartbeat")):
            pass
        return beat


@pytest.fixture
def bind():
    """Bind brokers, to any port unless told otherwise; all are closed at the end."""
    context = zmq.Context()
    brokers = []

    def bind(*endpoint):
        brokers.append(Broker(context, *endpoint))
        return brokers[-1]

    yield bind
    context.destroy(0)


@pytest.fixture
def broker(bind):
    return bind()


@pytest.fixture
def start(broker):
    """Start workers that dial the broker; what still runs at the end is killed."""
    workers = []

    def start(*options, command=COMMAND, endpoint=None):
        fixed = ("--backend", "simulated", "--broker", endpoint or broker.endpoint, "--name", "w")
        workers.append(Worker([*command, *fixed, *options]))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


def ids(count):
    return [os.urandom(16) for _ in range(count)]


def test_a_request_from_ready_to_goodbye(broker, start):
    worker = start(*QUICK, "--gpu", "3", "--max-batch-size", "4")
    ready = broker.register(session=5)
    assert (ready["name"], ready["gpu_id"], ready["backend"], ready["models"]) == (
        "w",
        3,
        "simulated",
        ["simulated"],
    )
    assert (ready["capacity"], ready["max_batch_size"], ready["batching"]) == (8, 4, "static")
    assert ready["pid"] == worker.process.pid
    assert (ready["queued"], ready["running"], ready["finished"]) == ([], [], [])
    beat = broker.heartbeat(lambda beat: beat["beat"] == 1)
    assert (beat["session"], beat["state"]) == (5, "ready")
    (one,) = ids(1)
    broker.work(one, {"num_inference_steps": 2, "width": 64, "height": 32}, progress=True, attempt=2)
    steps = [broker.receive("progress") for _ in range(3)]
    assert [(message["request_id"], message["step"], message["steps"]) for message in steps] == [
        (one, 0, 2),
        (one, 1, 2),
        (one, 2, 2),
    ]
    result = broker.receive("result")
    assert (result["request_id"], result["attempt"], result["worker"]) == (one, 2, "w")
    assert result["images"] == [{"format": "png", "width": 64, "height": 32, "seed": 7}]
    assert [frame[:4] for frame in result["frames"]] == [b"\x89PNG"]
    beat = broker.heartbeat(lambda beat: beat["finished"] == [one])
    assert beat["stats"]["total_requests"] == beat["stats"]["total_images"] == 1
    broker.send("release", request_ids=[one])
    broker.heartbeat(lambda beat: beat["finished"] == [])
    worker.signal()
    broker.receive("goodbye")
    assert worker.end() == 0
    assert "worker exited status=0" in worker.lines[-1]


def test_an_answer_is_sent_again_and_never_made_again(broker, start):
    start(*QUICK)
    broker.register()
    (one,) = ids(1)
    broker.work(one)
    first = broker.receive("result")
    broker.send("resend", request_ids=[one])
    second = broker.receive("result")
    broker.work(one, attempt=2)
    third = broker.receive("result")
    assert first["frames"] == second["frames"] == third["frames"]
    assert [answer["attempt"] for answer in (first, second, third)] == [1, 1, 2]
    assert broker.heartbeat(lambda beat: True)["stats"]["total_batches"] == 1


def test_sigterm_gives_back_what_has_not_begun_and_stops_what_is_released(broker, start):
    worker = start("--simulated-batch-seconds", "20", "--simulated-image-seconds", "0", "--max-batch-size", "1")
    broker.register()
    running, *queued = ids(3)
    broker.work(running, MANY_STEPS)
    for one in queued:
        broker.work(one)
    broker.heartbeat(lambda beat: beat["running"] == [running] and beat["queued"] == queued)
    worker.signal()
    returned = [broker.receive("error") for _ in queued]
    assert [(error["request_id"], error["code"]) for error in returned] == [(one, "returned") for one in queued]
    beat = broker.heartbeat(lambda beat: beat["state"] == "draining")
    assert (beat["running"], beat["queued"]) == ([running], [])
    (late,) = ids(1)
    broker.work(late)
    assert broker.receive("error")["request_id"] == late
    broker.send("release", request_ids=[running])
    broker.receive("goodbye")
    assert worker.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_finishes_what_runs_and_waits_for_the_release(broker, start, number):
    worker = start("--simulated-batch-seconds", "0.5", "--simulated-image-seconds", "0")
    broker.register()
    (one,) = ids(1)
    broker.work(one)
    broker.heartbeat(lambda beat: beat["running"] == [one])
    worker.signal(number)
    assert broker.receive("result")["request_id"] == one
    broker.heartbeat(lambda beat: beat["finished"] == [one] and beat["state"] == "draining")
    broker.send("resend", request_ids=[one])
    assert broker.receive("result", "goodbye")["type"] == "result", "it waits"
    broker.send("release", request_ids=[one])
    assert broker.receive("goodbye")
    assert worker.end() == 0


def test_a_release_that_never_comes_is_waited_for_only_so_long(broker, start):
    worker = start(*QUICK, "--drain-timeout", "0.2")
    broker.register()
    (one,) = ids(1)
    broker.work(one)
    broker.receive("result")
    broker.send("drain")
    broker.receive("goodbye")
    assert worker.end() == 0
    assert any("drained unacknowledged=1" in line for line in worker.lines)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_at_once(broker, start, number, status):
    worker = start(*ENDLESS)
    broker.register()
    (one,) = ids(1)
    broker.work(one)
    broker.heartbeat(lambda beat: beat["running"] == [one])
    worker.signal(number)
    broker.heartbeat(lambda beat: beat["state"] == "draining")
    worker.signal(number)
    assert worker.end() == status
    assert "second signal" in worker.lines[-1]


@pytest.mark.parametrize("order", [(signal.SIGTERM, signal.SIGUSR1), (signal.SIGUSR1, signal.SIGTERM)])
def test_the_supervisors_word_is_no_second_signal(broker, start, order):
    """A stop of the whole service may signal the worker too, beside its supervisor."""
    worker = start("--simulated-batch-seconds", "0.5", "--simulated-image-seconds", "0")
    broker.register()
    (one,) = ids(1)
    broker.work(one)
    broker.heartbeat(lambda beat: beat["running"] == [one])
    for number in (*order, signal.SIGUSR1):
        worker.signal(number)
        broker.heartbeat(lambda beat: beat["state"] == "draining")
    assert broker.receive("result")["request_id"] == one
    broker.send("release", request_ids=[one])
    assert broker.receive("goodbye")
    assert worker.end() == 0


def test_a_refused_name_is_told_once_and_asked_for_until_it_is_free(broker, start):
    worker = start(*QUICK)
    for _ in range(3):
        broker.receive("ready")
        broker.send("error", code="worker_name_taken", message="a live worker has the name 'w'")
    broker.register()
    broker.receive("heartbeat")
    worker.signal()
    assert worker.end() == 0
    told = [line for line in worker.lines if "refused by broker" in line]
    assert len(told) == 1
    assert "worker_name_taken: a live worker has the name 'w'" in told[0]


def test_a_broker_that_is_not_there_yet_is_told_once_and_found_when_it_comes(bind, broker, start):
    broker.socket.close(0)  # its port is known now
    worker = start(*QUICK)
    worker.line("broker did not answer, retrying")
    late = bind(broker.endpoint)
    late.register()
    late.receive("heartbeat")
    worker.signal()
    assert worker.end() == 0
    assert sum("broker did not answer" in line for line in worker.lines) == 1


def test_a_broker_that_comes_back_is_told_all_that_is_held(broker, start):
    start(*ENDLESS)
    broker.register()
    running, queued = ids(2)
    broker.work(running)
    broker.work(queued)
    broker.heartbeat(lambda beat: beat["running"] == [running] and beat["queued"] == [queued])
    broker.beat(session=1, epoch=b"f" * 16)
    ready = broker.register(session=2, epoch=b"f" * 16)
    assert (ready["running"], ready["queued"]) == ([running], [queued])
    assert broker.heartbeat(lambda beat: beat["session"] == 2)


def test_what_can_not_be_read_is_answered(broker, start):
    start(*QUICK)
    broker.register()
    broker.send("nonsense")
    assert broker.receive("error")["code"] == "protocol_error"
    broker.send("release", v=1, request_ids=[])
    assert broker.receive("error")["code"] == "unsupported_version"
    (one,) = ids(1)
    broker.work(one, {"width": -1})
    error = broker.receive("error")
    assert (error["request_id"], error["code"]) == (one, "invalid_request")
    assert "width" in error["message"]


def test_more_images_than_a_call_takes_are_spread_over_calls(broker, start):
    start(*QUICK, "--max-batch-size", "2")
    broker.register()
    (one,) = ids(1)
    broker.work(one, {"num_images": 5, "width": 64, "height": 64})
    result = broker.receive("result")
    assert [image["seed"] for image in result["images"]] == [7, 8, 9, 10, 11]
    assert len(set(result["frames"])) == 5
    beat = broker.heartbeat(lambda beat: beat["finished"] == [one])
    assert (beat["stats"]["total_batches"], beat["stats"]["total_images"]) == (3, 5)


def test_out_of_memory_halves_and_one_guilty_request_fails_alone(broker, start):
    # Nothing is begun before four are there: the first wait would be an hour.
    wait = ("--max-batch-size", "4", "--max-batch-wait-time", "3600")
    worker = start(*QUICK, *wait, "--simulated-fail", "oom:2", "--simulated-fail", "error-on:evil")
    broker.register()
    many = ids(4)
    for one in many:
        broker.work(one, {"prompt": "evil" if one == many[1] else "good"})
    answers = {answer["request_id"]: answer for answer in (broker.receive("result", "error") for _ in many)}
    assert set(answers) == set(many)
    assert [answers[one]["type"] for one in many] == ["result", "error", "result", "result"]
    assert answers[many[1]]["code"] == "generation_failed"
    assert answers[many[2]]["batch_size"] == 2
    assert "batch split in halves images=4 " in worker.line("warning out of memory")
    broker.send("release", request_ids=many)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("raise StartError('no such file')", 78, "the model could not be loaded: no such file"),
        ("raise OSError('bad weights')", 78, "the model could not be loaded: OSError: bad weights"),
        ("import no_such_module", 78, "No module named 'no_such_module'; install imagegen-fleet[worker]"),
        ("raise DeviceMemoryError('another has it')", 1, "could not be loaded: DeviceMemoryError: another has it"),
    ],
)
def test_a_model_that_can_not_be_loaded_ends_the_process(start, body, status, words):
    worker = start(command=broken("warm_up", body))
    assert worker.end() == status
    assert words in worker.lines[-1]
    assert " critical " in worker.lines[-1]


@pytest.mark.parametrize("error", ["DeviceLostError('fell off the bus')", "SystemExit('fell off the bus')"])
def test_a_device_thread_that_dies_ends_the_process(broker, start, error):
    worker = start(command=broken("generate", f"raise {error}"))
    broker.register()
    broker.work(*ids(1))
    assert worker.end() == 1
    assert "device thread died: " in worker.lines[-1]
    assert "fell off the bus" in worker.lines[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_waits_for_a_model_that_is_being_loaded(start, number):
    worker = start(
        command=broken("warm_up", "print('loading', file=__import__('sys').stderr); threading.Event().wait()")
    )
    worker.line("loading")
    worker.signal(number)
    assert worker.end() == 0


def test_a_device_that_hangs_ends_the_process(broker, start):
    worker = start(*QUICK, "--step-timeout", "0.2", "--simulated-fail", "hang-after:0")
    broker.register()
    broker.work(*ids(1))
    assert worker.end() == 70
    assert any(" critical device hung " in line for line in worker.lines)


def test_the_http_doors(broker, start):
    worker = start(*QUICK, "--http-port", "0")
    address = worker.line("metrics server started").split("address=")[1].split("/metrics")[0]

    def fetch(path):
        try:
            with urllib.request.urlopen(address + path, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    assert fetch("/healthz") == (200, "ok\n")
    assert f"http://{broker.receive('ready')['http']}" == address
    broker.receive("ready")  # the views are made anew at the end of a turn: that of the first one is over
    assert fetch("/readyz") == (503, "the worker is not registered with a broker\n")
    broker.beat()
    (one,) = ids(1)
    broker.work(one)
    broker.heartbeat(lambda beat: beat["finished"] == [one])
    broker.receive("heartbeat")
    assert fetch("/readyz") == (200, "ok\n")
    status, text = fetch("/metrics")
    assert status == 200
    assert 'imagegen_worker_requests_total{gpu="0",outcome="result",worker="w"} 1.0' in text


def test_a_simulated_worker_is_small(broker, start):
    worker = start(*QUICK)
    broker.register()
    many = ids(16)
    for one in many:
        broker.work(one)
    for _ in many:
        broker.receive("result")
    process = psutil.Process(worker.process.pid)
    assert process.memory_info().rss < 60_000_000
    assert not any("torch" in mapped.path for mapped in process.memory_maps())
