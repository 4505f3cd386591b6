"""Checks of a broker: payloads that are fetched in chunks."""

import os

from imagegen_protocol.conformance.broker_bench import BODY, IMAGE, INFO, BrokerBench, Client, Worker
from imagegen_protocol.conformance.peers import has, new_id
from imagegen_protocol.conformance.report import Checks, NotTested, expect
from imagegen_protocol.limits import MAX_CHUNK_BYTES, MAX_INLINE_BYTES, MAX_PREVIEW_BYTES, MIN_CHUNK_BYTES
from imagegen_protocol.messages import Accepted, Chunk, Fetch, Progress, Resend, Result, Submit
from imagegen_protocol.transfers import chunks, sizes_of

CHECKS: Checks[BrokerBench] = Checks()
_CHUNK = 16 * 1024


def _submit_fetched(client: Client, model: str, size: int = 200_000) -> tuple[bytes, list[bytes]]:
    """Send a SUBMIT whose payload is fetched; return its id and frames."""
    frames = [BODY, os.urandom(size)]
    request_id = new_id()
    client.send(Submit(request_id=request_id, model=model, frame_bytes=sizes_of(frames)))
    client.accepted(request_id)
    return request_id, frames


def _fetch(request_id: bytes, payload_id: bytes, offset: int, length: int, token: bytes = b"") -> Fetch:
    return Fetch(
        request_id=request_id,
        payload_id=payload_id,
        offset=offset,
        length=length,
        chunk_bytes=_CHUNK,
        token=token,
    )


class _Answer:
    """An answer that a client fetches from a worker, through the broker."""

    def __init__(self, bench: BrokerBench, size: int = 300_000) -> None:
        self.bench = bench
        self.client, self.worker, self.request_id = bench.dispatched()
        self.frames = [os.urandom(size)]
        self.payload_id = new_id()
        self.offer()
        result, received = self.client.result(self.request_id)
        expect(not received.frames and result.frame_bytes == [size], "RESULT has inline frames")

    def offer(self) -> None:
        """Send the header of RESULT."""
        self.worker.answer(
            self.request_id, images=[INFO], payload_id=self.payload_id, frame_bytes=sizes_of(self.frames)
        )

    def arrived_again(self) -> bool:
        """Send RESULT again if the broker sends RESEND; return whether the client has received it."""
        if self.worker.take(Resend):
            self.offer()
        return self.client.take(Result) is not None

    def ask(self, offset: int, length: int, token: bytes = b"") -> None:
        """Send FETCH from the client."""
        self.client.send(_fetch(self.request_id, self.payload_id, offset, length, token))

    def relayed(self) -> Fetch:
        """Wait for the FETCH at the worker."""
        fetch, _ = self.bench.receive(self.worker, Fetch, has(request_id=self.request_id))
        return fetch

    def serve(self, fetch: Fetch) -> int:
        """Send the chunks of a FETCH from the worker, and receive them at the client; return their size."""
        size = 0
        for chunk, data in chunks(self.frames, fetch):
            self.worker.send(chunk, bytes(data))
            _, received = self.bench.chunk(self.client, self.request_id, chunk.offset)
            expect(received.frames == [bytes(data)], f"the CHUNK at {chunk.offset} has other data")
            size += len(data)
        return size


@CHECKS("R-2.9", "the payload of SUBMIT is fetched, and then queued")
def fetched_submit(bench: BrokerBench) -> str:
    """Send an input image in chunks, and fetch it as the worker."""
    worker, client = bench.registered_worker(), bench.connected_client()
    request_id, frames = _submit_fetched(client, bench.model)
    fetches = client.serve(request_id, frames)
    expect(fetches[0].offset == 0, f"the first FETCH begins at {fetches[0].offset}")
    expect(fetches[0].payload_id == request_id, "FETCH has another payload_id than the request_id")
    work, received = worker.work(request_id)
    data = b"".join(received.frames)
    if work.frame_bytes:
        expect(work.frame_bytes == sizes_of(frames) and not received.frames, "WORK has other frame_bytes")
        data = _download(worker, work.request_id, sum(work.frame_bytes))
    expect(data == b"".join(frames), "the worker got other bytes than the client has sent")
    return f"{len(fetches)} FETCHes; the worker got the same {len(data):,} bytes"


def _download(worker: Worker, request_id: bytes, total: int) -> bytes:
    """Fetch the payload of WORK; return it."""
    data = b""
    while len(data) < total:
        offset = len(data)
        worker.send(_fetch(request_id, request_id, offset, _CHUNK, worker.token))
        chunk, received = worker.loop.receive(worker, Chunk, has(offset=offset))
        expect(len(received.frames) == 1, f"a CHUNK with {len(received.frames)} frames")
        expect(0 < len(received.frames[0]) <= _CHUNK, f"a CHUNK of {len(received.frames[0])} bytes")
        expect(chunk.token, "a CHUNK without a token")
        data += received.frames[0]
    return data


@CHECKS("R-2.6", "the broker requests no more than its window")
def window_of_broker(bench: BrokerBench) -> str:
    """Leave FETCHes unanswered, and add up the bytes that the broker requests."""
    client = bench.connected_client()
    bench.registered_worker()
    sizes = [_submit_fetched(client, bench.model, 3_000_000)[0] for _ in range(4)]
    client.wait_for_heartbeats(2)
    assert client.heartbeat is not None
    asked = 0
    while (received := client.take(Fetch)) is not None:
        assert isinstance(received.message, Fetch)
        asked += received.message.length
        expect(received.message.chunk_bytes <= MAX_CHUNK_BYTES, "chunk_bytes is too large")
    window = client.heartbeat.fetch_window_bytes
    expect(0 < asked <= window, f"{asked:,} bytes requested, the window has {window:,}")
    return f"{asked:,} bytes for {len(sizes)} payloads; the window has {window:,}"


@CHECKS("R-2.4", "an interrupted upload resumes where it stopped")
def resumed_upload(bench: BrokerBench) -> str:
    """Send a part of a payload, and connect again."""
    client = bench.connected_client()
    worker = bench.registered_worker()
    request_id, frames = _submit_fetched(client, bench.model)
    sent = client.serve(request_id, frames, until=_CHUNK)
    # The next FETCH of the broker shows that it has read the chunks.
    bench.receive(client, Fetch, lambda each: each.offset >= _CHUNK)
    client.disconnect()
    second = bench.connected_client()
    second.send(Submit(request_id=request_id, model=bench.model, frame_bytes=sizes_of(frames)))
    second.accepted(request_id)
    fetch, _ = bench.receive(second, Fetch)
    expect(fetch.offset >= _CHUNK, f"the second connection began at {fetch.offset}, not at {_CHUNK} or later")
    for chunk, data in chunks(frames, fetch):
        second.send(chunk, bytes(data))
    second.serve(request_id, frames)
    worker.work(request_id)
    return f"{len(sent)} FETCHes, then from {fetch.offset:,} on"


@CHECKS("R-2.5", "the broker requests chunks again that do not arrive")
def stalled_upload(bench: BrokerBench) -> str:
    """Ignore the first FETCHes, and send an unexpected chunk."""
    client = bench.connected_client()
    worker = bench.registered_worker()
    request_id, frames = _submit_fetched(client, bench.model)
    client.send(Chunk(request_id=request_id, payload_id=request_id, offset=100_000), b"unexpected")
    first, _ = bench.receive(client, Fetch)
    bench.receive(
        client,
        Fetch,
        has(offset=first.offset),
        what="expected the same FETCH again",
        seconds=bench.patience + client.silence + client.interval,
    )
    for chunk, data in chunks(frames, first):
        client.send(chunk, bytes(data))
    client.serve(request_id, frames)
    worker.work(request_id)
    return f"requested again within {client.silence + client.interval:g} s; the unexpected chunk was ignored"


@CHECKS("R-2.8", "FETCH and CHUNK of an answer are relayed")
def relayed_answer(bench: BrokerBench) -> str:
    """Fetch an answer in pieces, and send a chunk that was not requested."""
    answer = _Answer(bench)
    stray = Chunk(request_id=answer.request_id, payload_id=answer.payload_id, offset=0)
    answer.worker.send(stray, b"unasked")
    total, done = len(answer.frames[0]), 0
    while done < total:
        answer.ask(done, 2 * _CHUNK, answer.client.token)
        fetch = answer.relayed()
        expect(fetch.offset == done, f"FETCH at {fetch.offset}, the client has requested {done}")
        expect(fetch.chunk_bytes <= _CHUNK, f"chunk_bytes {fetch.chunk_bytes}, the client has requested {_CHUNK}")
        done += answer.serve(fetch)
    answer.client.ack(answer.request_id)
    expect(answer.client.take(Chunk) is None, "a CHUNK was relayed that the client has not requested")
    return f"{total:,} bytes"


@CHECKS("R-2.4", "an interrupted download resumes on a new connection")
def resumed_download(bench: BrokerBench) -> str:
    """Fetch the first part on one connection and the rest on another one."""
    answer = _Answer(bench, 4 * _CHUNK)
    answer.ask(0, 2 * _CHUNK)
    answer.serve(answer.relayed())
    answer.client.disconnect()
    answer.client = bench.connected_client()
    answer.client.send(Submit(request_id=answer.request_id, model=bench.model), BODY)
    bench.until(answer.arrived_again, "expected RESULT on the second connection")
    answer.ask(2 * _CHUNK, 2 * _CHUNK)
    size = answer.serve(answer.relayed())
    answer.client.ack(answer.request_id)
    return f"{size:,} bytes from {2 * _CHUNK:,} on"


@CHECKS("R-2.7", "unconfirmed bytes count towards the window")
def unconfirmed_bytes(bench: BrokerBench) -> str:
    """Receive as much as the window allows without a token, then confirm it."""
    client = bench.connected_client()
    assert client.heartbeat is not None
    window = client.heartbeat.fetch_window_bytes
    if window > 8 * 1024 * 1024:
        raise NotTested(f"the window has {window:,} bytes, which takes too long to fill")
    answer = _Answer(bench, window + 4 * MAX_CHUNK_BYTES)
    answer.client.confirms = False
    tokens: list[bytes] = []
    done = 0
    while window - done >= MIN_CHUNK_BYTES:  # a broker may ignore shorter ones
        length = min(MAX_CHUNK_BYTES, window - done)
        answer.client.send(
            Fetch(request_id=answer.request_id, payload_id=answer.payload_id, offset=done, length=length)
        )
        fetch = answer.relayed()
        for chunk, data in chunks(answer.frames, fetch):
            answer.worker.send(chunk, bytes(data))
            relayed, _ = bench.chunk(answer.client, answer.request_id, chunk.offset)
            expect(relayed.token and relayed.token not in tokens, "a CHUNK without a token of its own")
            tokens.append(relayed.token)
            done += len(data)
    answer.ask(done, _CHUNK)
    answer.client.wait_for_heartbeats(2)
    expect(answer.worker.take(Fetch) is None, f"a FETCH beyond the window of {window:,} bytes was relayed")
    answer.ask(done, _CHUNK, tokens[-1])
    answer.serve(answer.relayed())
    return f"stopped after {done:,} bytes, continued with the token"


@CHECKS("R-4.14", "previews are forwarded with a token, within limits")
def previews(bench: BrokerBench) -> str:
    """Send previews: a good one, too long ones, and more than are confirmed."""
    client, worker = bench.connected_client(), bench.registered_worker()
    client.confirms = False
    request_id = client.submit(bench.model, preview=True)
    work, _ = worker.work(request_id)
    expect(work.progress or work.preview, "WORK has neither progress nor preview")
    shown = []
    for step, size in enumerate([100, MAX_PREVIEW_BYTES + 1, *[MAX_PREVIEW_BYTES] * 7], 1):
        worker.send(Progress(request_id=request_id, step=step, steps=9), b"\x89PNG\r\n\x1a\n".ljust(size, b"p"))
        found, received = bench.receive(client, Progress, has(step=step))
        expect(bool(found.token) == bool(received.frames), "token without a preview, or a preview without token")
        shown.append(sum(map(len, received.frames)))
    expect(shown[0] == 100, "the preview was not forwarded")
    expect(shown[1] == 0, "a preview of 16,385 bytes was forwarded")
    expect(shown[-1] == 0, f"{sum(shown):,} bytes of previews were sent without confirmation")
    return f"{sum(shown):,} unconfirmed bytes"


@CHECKS("R-2.1", "a payload of the largest inline size is accepted")
def largest_inline(bench: BrokerBench) -> str:
    """Send 65,536 bytes inline in both directions."""
    client, worker = bench.connected_client(), bench.registered_worker()
    request_id = new_id()
    extra = os.urandom(MAX_INLINE_BYTES - len(BODY))
    keys = {"request_id": request_id, "model": bench.model, "inline_bytes": MAX_INLINE_BYTES}
    client.send(Submit(**keys), BODY, extra)  # type: ignore[arg-type]
    client.accepted(request_id)
    work, received = worker.work(request_id)
    expect(work.inline_bytes == MAX_INLINE_BYTES, f"WORK has inline_bytes {work.inline_bytes}")
    data = b"".join(received.frames) or _download(worker, request_id, sum(work.frame_bytes))
    expect(data == BODY + extra, "the worker got other bytes")
    image = IMAGE.ljust(MAX_INLINE_BYTES, b"x")
    worker.answer(request_id, image)
    _, received = client.result(request_id)
    expect(received.frames == [image], "the client got other bytes")
    expect(client.take(Accepted) is None, "an unexpected ACCEPTED")
    return "65,536 bytes both ways"
