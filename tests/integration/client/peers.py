"""A minimal worker on `zmq` and `msgpack`, and other shared helpers."""

import io
import os
import threading

import msgpack
import zmq
from PIL import Image

PATIENCE = 60.0
PIECE = 1 << 20
"""Bytes that a worker asks for at a time."""
NOWHERE = "tcp://127.0.0.1:1"


def _png():
    out = io.BytesIO()
    Image.new("RGB", (4, 2), "red").save(out, "PNG")
    return out.getvalue()


PNG = _png()


class RawWorker:
    """A worker in a thread. Prompts tell it what to do: `fail`, `hold` (until `let_go` is set) or `warn`."""

    def __init__(self, endpoint, name="raw", capacity=1000):
        self.name = name
        self.let_go = threading.Event()
        self.begun = []
        self.images = []
        """The frames after each body."""
        self.image = PNG
        """The bytes that it sends for each image."""
        self.readable = None
        """Number of bytes of an answer that it sends; None for all."""
        self.sent_offsets = []
        """The position of each chunk that it sent."""
        self.most_held = 0
        self._capacity = capacity
        self._running = {}
        self._answers = {}
        self._arriving = {}
        """Requests whose payload is being fetched: WORK, and what has arrived."""
        self._token = b""
        self._session = self._beat = self._batches = 0
        self._stop = threading.Event()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(endpoint)
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"worker-{name}", daemon=True)
        self._thread.start()

    def stop(self):
        self._stop.set()
        self._thread.join(PATIENCE)

    def wait_until(self, holds, what):
        """Wait until a condition holds; it is checked after each iteration of the worker's loop."""
        with self._condition:
            assert self._condition.wait_for(holds, PATIENCE), f"not {what}"

    def wait_for_work(self, number):
        self.wait_until(lambda: len(self.begun) >= number, f"{number} requests")

    def wait_for_idleness(self):
        self.wait_until(lambda: not self._running and not self._answers, "everything released")

    # ---- the thread ----------------------------------------------------------------------------------------

    def _run(self):
        self._ready()
        while not self._stop.is_set():
            self._socket.poll(10)
            while self._socket.poll(0):
                header, *frames = self._socket.recv_multipart()
                with self._condition:
                    self._take(msgpack.unpackb(header), frames)
            if self.let_go.is_set():
                for request_id, (work, body) in list(self._running.items()):
                    self._draw(request_id, work, body)
            with self._condition:
                self._condition.notify_all()
        self._socket.close(0)
        self._context.term()

    def _send(self, header, *frames):
        self._socket.send_multipart([msgpack.packb({"v": 2, **header}), *frames])

    def _holding(self):
        stats = {"total_batches": self._batches, "total_batched_requests": self._batches}
        return {
            "queued": list(self._arriving),
            "running": list(self._running),
            "finished": list(self._answers),
            "stats": stats,
        }

    def _ready(self):
        about = {"host": "here", "gpu_id": 0, "device": "cpu", "backend": "none", "models": ["raw-model"]}
        self._send({
            "type": "ready", "worker_id": os.urandom(16), "name": self.name, "capacity": self._capacity,
            "max_batch_size": 1, "pid": 1, **about, **self._holding(),
        })  # fmt: skip

    def _take(self, message, frames):
        match message["type"]:
            case "heartbeat":
                self._session, self._beat = message["session"], message["beat"]
                if not self._session:
                    self._ready()
                self._heartbeat()
            case "work" if message.get("frame_bytes"):
                if message["request_id"] not in self._running:
                    self._arriving.setdefault(message["request_id"], (message, bytearray()))
                    self._fetch(message["request_id"])
            case "work":
                self._begin(message, msgpack.unpackb(frames[0]), frames[1:])
            case "chunk":
                self._token = message["token"]
                self._take_chunk(message, frames[0])
            case "fetch" if message["request_id"] in self._answers:
                self._send_chunks(message)
            case "release":
                for request_id in message["request_ids"]:
                    self._running.pop(request_id, None)
                    self._arriving.pop(request_id, None)
                    self._answers.pop(request_id, None)
            case "resend":
                for request_id in message["request_ids"]:
                    if request_id in self._answers:
                        self._send_answer(request_id)

    def _heartbeat(self):
        about = {"session": self._session, "beat": self._beat, "token": self._token}
        self._send({"type": "heartbeat", **about, **self._holding()})

    def _fetch(self, request_id):
        work, arrived = self._arriving[request_id]
        length = min(PIECE, sum(work["frame_bytes"]) - len(arrived))
        about = {"request_id": request_id, "payload_id": request_id, "token": self._token}
        self._send({"type": "fetch", "offset": len(arrived), "length": length, **about})

    def _take_chunk(self, message, data):
        work, arrived = self._arriving.get(message["request_id"], (None, b""))
        if work is None or message["offset"] != len(arrived):
            return
        arrived += data
        sizes = work["frame_bytes"]
        if len(arrived) == sum(sizes):
            del self._arriving[message["request_id"]]
            ends = [sum(sizes[: at + 1]) for at in range(len(sizes))]
            frames = [bytes(arrived[end - size : end]) for end, size in zip(ends, sizes, strict=True)]
            self._begin(work, msgpack.unpackb(frames[0]), frames[1:])
        elif len(arrived) % PIECE == 0:
            self._fetch(message["request_id"])

    def _send_chunks(self, fetch):
        _, frames = self._answers[fetch["request_id"]]
        whole = b"".join(frames)
        end = min(fetch["offset"] + fetch["length"], len(whole) if self.readable is None else self.readable)
        about = {"type": "chunk", "request_id": fetch["request_id"], "payload_id": fetch["payload_id"]}
        for offset in range(fetch["offset"], end, fetch["chunk_bytes"]):
            self.sent_offsets.append(offset)
            self._send({**about, "offset": offset}, whole[offset : min(offset + fetch["chunk_bytes"], end)])

    def _begin(self, work, body, images):
        request_id = work["request_id"]
        if request_id in self._running or request_id in self._answers:
            return
        self.begun.append(body["prompt"])
        self.images.append(images)
        self._running[request_id] = (work, body)
        self.most_held = max(self.most_held, len(self._running))
        if work.get("progress"):
            self._progress(work, 1)
        if body["prompt"].startswith("fail"):
            message = {
                "type": "error",
                "request_id": request_id,
                "code": "generation_failed",
                "message": "it broke",
            }
            self._answer(request_id, message)
        elif not body["prompt"].startswith("hold"):
            self._draw(request_id, work, body)

    def _progress(self, work, step):
        self._send({"type": "progress", "request_id": work["request_id"], "step": step, "steps": 2})

    def _draw(self, request_id, work, body):
        if work.get("progress"):
            self._progress(work, 2)
        self._batches += 1
        frames = [self.image] * body.get("num_images", 1)
        images = [
            {"format": "png", "width": 4, "height": 2, "seed": body["seed"] + at} for at in range(len(frames))
        ]
        message = {"type": "result", "request_id": request_id, "worker": self.name, "model": "raw-model"}
        message |= {"images": images}
        if body["prompt"] == "warn":
            message |= {"warnings": ["prompt: too\nlong"]}
        if sum(map(len, frames)) > work["inline_bytes"]:
            message |= {"payload_id": os.urandom(16), "frame_bytes": [len(frame) for frame in frames]}
        self._answer(request_id, message, *frames)
        self._heartbeat()

    def _answer(self, request_id, header, *frames):
        del self._running[request_id]
        self._answers[request_id] = header, frames
        self._send_answer(request_id)

    def _send_answer(self, request_id):
        header, frames = self._answers[request_id]
        self._send(header, *(() if "frame_bytes" in header else frames))


def wait_for_end(thread):
    thread.join(PATIENCE)
    assert not thread.is_alive()
