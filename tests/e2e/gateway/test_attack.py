"""One API key abuses the gateway in every way at once; requests of another succeed, and memory stays bounded."""

import base64
import json
import os
import socket
import threading
import time
import zlib
from contextlib import ExitStack, suppress

import httpx2
import psutil
import pytest

from tests.e2e.gateway.webhook_receiver import Receiver

MAX_BODY = 16 * 1024**2
REQUESTS = 20
"""Number of rounds of the other key."""
MAX_GROWTH = 3 * 4 * MAX_BODY + 128 * 1024**2
"""Maximum growth of the gateway's memory: three copies of the bodies that one key may hold, and the rest."""


def png(chunks=0, padding=0):
    """Return a PNG of 8x8 pixels with empty chunks, and a chunk of random bytes."""

    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = chunk(b"IHDR", b"\0\0\0\x08\0\0\0\x08\x08\0\0\0\0")
    filling = chunks * chunk(b"teSt", b"") + (chunk(b"teSt", os.urandom(padding)) if padding else b"")
    pixels = chunk(b"IDAT", zlib.compress(8 * (9 * b"\0")))
    return b"\x89PNG\r\n\x1a\n" + header + filling + pixels + chunk(b"IEND", b"")


class Mallory:
    """The attacks of one key, each in threads of its own that repeat it until the end."""

    def __init__(self, gateway, key, file, hanging):
        self.gateway, self.file, self.hanging = gateway, file, hanging
        self.headers = {"Authorization": f"Bearer {key}"}
        self.ended = threading.Event()
        self.statuses = {}
        self._host, self._port = gateway.url.removeprefix("http://").split(":")
        self._threads = []
        chunks, padded = png(chunks=1_200_000), base64.b64encode(png(padding=8 * 1000**2)).decode()
        fields = b'{"prompt":"x",' + b",".join(b'"f%d":1' % number for number in range(1_000_000)) + b"}"
        form = {"data": {"prompt": "x", "loras": 20_000 * "["}, "files": {"image": png()}}
        images, jobs, edits = "/v1/images/generations", "/v1/jobs", "/v1/images/edits"
        for name, attack in {
            "PNG of 1.2 million chunks": self._post(edits, data={"prompt": "x"}, files={"image": chunks}),
            "JSON of 1 million fields": self._post(images, content=fields),
            "JSON of 1 million fields as a job": self._post(jobs, content=fields),
            "long texts in errors": self._post(jobs, json={"p" * 10**7: 1}),
            "nested JSON in a form": self._post(edits, **form),
            "jobs with large images": self._post(jobs, json={"prompt": "x", "image": padded}),
            "hanging webhooks": self._post(jobs, json={"prompt": "x", "size": "8x8", "webhook_url": hanging}),
        }.items():
            for _ in range(2):
                self._start(name, attack)
        for name, attack in {
            "unread files": lambda: self._connections(self._get(self.file), 30, read=1),
            "unread lists": lambda: self._connections(self._get("/v1/jobs?limit=100"), 10, read=1),
            "unfinished bodies": lambda: self._connections(self._begin_post(), 30),
            "event streams": lambda: self._connections(self._get("/fleet/events"), 110),
            "silent connections": lambda: self._connections(b"", 50),
        }.items():
            self._start(name, attack)

    def _post(self, path, **body):
        def attack():
            headers = self.headers | ({"Content-Type": "application/json"} if "content" in body else {})
            with httpx2.Client(base_url=self.gateway.url, trust_env=False, timeout=60) as client:
                return client.post(path, headers=headers, **body).status_code

        return attack

    def _get(self, path):
        return self._head("GET", path, "")

    def _begin_post(self):
        return self._head("POST", "/v1/jobs", f"Content-Type: application/json\r\nContent-Length: {MAX_BODY}\r\n")

    def _head(self, method, path, fields):
        key = f"Authorization: {self.headers['Authorization']}\r\n"
        return f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\n{key}{fields}\r\n".encode()

    def _connections(self, data, number, read=0):
        """Open connections that send some bytes and read at most one; close them at the end."""
        with ExitStack() as stack:
            for _ in range(number):
                connection = stack.enter_context(socket.socket())
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.settimeout(60)
                connection.connect((self._host, int(self._port)))
                connection.sendall(data)
                if read:
                    connection.recv(read)
            self.ended.wait()
        return 0

    def _start(self, name, attack):
        def run():
            while not self.ended.is_set():
                with suppress(httpx2.HTTPError, OSError):
                    status = attack()
                    counts = self.statuses.setdefault(name, {})
                    counts[status] = counts.get(status, 0) + 1

        thread = threading.Thread(target=run)
        thread.start()
        self._threads.append(thread)

    def stop(self):
        self.ended.set()
        for thread in self._threads:
            thread.join()


class HangingReceiver:
    """A server that accepts connections and never answers."""

    def __init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/hook"

    def close(self):
        self._listener.close()


class MemoryPeak:
    """The largest memory of a process, sampled in a thread."""

    def __init__(self, pid):
        self._process = psutil.Process(pid)
        self.before = self.peak = self._process.memory_info().rss
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while not self._ended.wait(0.02):
            self.peak = max(self.peak, self._process.memory_info().rss)

    def stop(self):
        self._ended.set()
        self._thread.join()


class Bob:
    """The requests of another key, with their latencies in seconds."""

    def __init__(self, gateway, key, receiver):
        self._headers = {"Authorization": f"Bearer {key}"}
        self._http = httpx2.Client(base_url=gateway.url, trust_env=False, timeout=120, headers=self._headers)
        self._receiver = receiver
        self.latencies = {}

    def _timed(self, name, status, method, path, **options):
        begun = time.monotonic()
        response = self._http.request(method, path, **options)
        self.latencies.setdefault(name, []).append(time.monotonic() - begun)
        assert response.status_code == status, (name, response.text)
        return response

    def round(self):
        body = {"prompt": "x", "size": "64x64"}
        self._timed("image", 200, "POST", "/v1/images/generations", json=body)
        self._timed("models", 200, "GET", "/v1/models")
        self._timed("health", 200, "GET", "/healthz")
        job = {**body, "webhook_url": self._receiver.url}
        id_ = self._timed("job", 202, "POST", "/v1/jobs", json=job).json()["id"]
        begun = time.monotonic()
        _, event = self._receiver.next()
        self.latencies.setdefault("job to webhook", []).append(time.monotonic() - begun)
        assert (event["type"], event["data"]["id"]) == ("job.succeeded", id_)
        name = event["data"]["images"][0]["url"].rpartition("/")[2]
        self._timed("file", 200, "GET", f"/v1/files/{name}")

    def close(self):
        self._http.close()


def show(title, latencies):
    for name, seconds in latencies.items():
        ordered = sorted(seconds)
        median, last = ordered[len(ordered) // 2], ordered[-1]
        print(f"{title}: {name}: median {median * 1000:.0f} ms, maximum {last * 1000:.0f} ms")


@pytest.fixture
def guarded(start_gateway):
    return start_gateway(
        "--auth",
        "keys",
        "--max-body-bytes",
        str(MAX_BODY),
        "--webhook-allow",
        "127.0.0.0/8",
    )


def large_file(gateway, headers):
    """Return the path of an image of 20 MB."""
    job = gateway.http.post("/v1/jobs", json={"prompt": "x", "size": "64x64"}, headers=headers).json()
    with gateway.http.stream("GET", f"/v1/jobs/{job['id']}/events", headers=headers) as response:
        last = [line for line in response.iter_lines() if line.startswith("data: ")][-1]
    name = json.loads(last.removeprefix("data: "))["images"][0]["url"].rpartition("/")[2]
    (gateway.folder / "results" / name).write_bytes(os.urandom(20 * 1024**2))
    return f"/v1/files/{name}"


def test_a_hostile_key_harms_no_other_key(fleet, guarded):
    keys = {name: guarded.add_key(name) for name in ("mallory", "bob")}
    with ExitStack() as stack:
        receiver, hanging = Receiver(), HangingReceiver()
        stack.callback(receiver.close)
        stack.callback(hanging.close)
        bob = Bob(guarded, keys["bob"], receiver)
        stack.callback(bob.close)
        for _ in range(REQUESTS):
            bob.round()
        show("before", bob.latencies)
        bob.latencies.clear()
        file = large_file(guarded, {"Authorization": f"Bearer {keys['mallory']}"})
        memory = MemoryPeak(fleet.processes[guarded.name].pid)
        stack.callback(memory.stop)
        mallory = Mallory(guarded, keys["mallory"], file, hanging.url)
        stack.callback(mallory.stop)
        for _ in range(REQUESTS):
            bob.round()
        mallory.stop()
        memory.stop()
    show("under attack", bob.latencies)
    for name, statuses in mallory.statuses.items():
        print(f"attack: {name}: {dict(sorted(statuses.items()))}")
    print(f"memory: {memory.before / 1e6:.0f} MB before, {memory.peak / 1e6:.0f} MB at most")
    assert memory.peak - memory.before < MAX_GROWTH
    assert (fleet._log_folder / f"{guarded.name}.log").stat().st_size < 10 * 1000**2
