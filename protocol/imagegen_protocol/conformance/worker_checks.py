"""Checks of a worker."""

from itertools import pairwise

import msgpack

from imagegen_protocol.conformance.fake_broker import INTERVAL, SILENCE, Upload, download
from imagegen_protocol.conformance.peers import new_id
from imagegen_protocol.conformance.report import Checks, NotTested, expect
from imagegen_protocol.conformance.worker_bench import BODY, SEED, WorkerBench, held
from imagegen_protocol.errors import (
    RETURNED,
    DeadlineExceededError,
    InvalidRequestError,
    ModelNotFoundError,
    ProtocolError,
    UnsupportedVersionError,
)
from imagegen_protocol.limits import MAX_INLINE_BYTES, MAX_PROMPT_LENGTH
from imagegen_protocol.messages import (
    Chunk,
    Drain,
    Error,
    Fetch,
    Goodbye,
    Progress,
    Ready,
    Release,
    Resend,
    WorkerHeartbeat,
)
from imagegen_protocol.transfers import sizes_of

CHECKS: Checks[WorkerBench] = Checks()


@CHECKS("R-5.1", "READY is sent again each interval until it is answered")
def registration(bench: WorkerBench) -> str:
    """Answer READY only after it was repeated."""
    broker = bench.broker
    bench.until(lambda: broker.ready, "expected READY")
    times = [each.at for each in broker.messages if isinstance(each.message, Ready)]
    bench.until(
        lambda: sum(isinstance(each.message, Ready) for each in broker.messages) > len(times),
        "expected READY again",
    )
    ready = bench.registered()
    return f"{ready.name}: {', '.join(ready.models)}"


@CHECKS("R-1.7", "the routing id has 16 bytes")
def routing_id(bench: WorkerBench) -> str:
    """Examine the routing id; a ROUTER generates one of 5 bytes for a peer that sets none."""
    expect(len(bench.broker.peer) == 16, f"a routing id of {len(bench.broker.peer)} bytes")
    return bench.broker.peer.hex()


@CHECKS("R-5.5", "the worker sends a HEARTBEAT in each interval")
def heartbeats(bench: WorkerBench) -> str:
    """Measure the time between two heartbeats, and check the session and the beat (R-5.6)."""
    bench.registered()
    bench.wait(5 * INTERVAL)
    found = [each for each in bench.broker.messages if isinstance(each.message, WorkerHeartbeat)][-4:]
    expect(len(found) >= 2, f"{len(found)} heartbeats in {5 * INTERVAL:g} s")
    longest = max(later.at - earlier.at for earlier, later in pairwise(found))
    expect(longest < SILENCE, f"{longest:.2f} s between two heartbeats")
    last = found[-1].message
    assert isinstance(last, WorkerHeartbeat)
    expect(last.session == bench.broker.session, f"session {last.session}, not {bench.broker.session}")
    expect(last.beat > 0, "beat is 0")
    expect(last.beat <= bench.broker.beat, f"beat {last.beat}, only {bench.broker.beat} were sent")
    return f"at most {longest:.2f} s apart"


@CHECKS("R-5.3", "the worker registers again when the broker does not know it")
def unknown_session(bench: WorkerBench) -> str:
    """Send a HEARTBEAT with session 0, and one with another epoch (R-5.1)."""
    bench.registered()
    broker = bench.broker
    for what, keys in (("session 0", {"session": 0}), ("another epoch", {"epoch": new_id()})):
        broker.ready = None
        broker.session = 0
        broker.heartbeat(**{"session": 1, **keys})
        if "epoch" in keys:
            broker.epoch = keys["epoch"]  # type: ignore[assignment]
        bench.until(lambda: broker.ready, f"expected READY after {what}")
        bench.registered()
    return "READY after both"


@CHECKS("R-5.11", "WORK is answered with RESULT, which is kept until RELEASE")
def one_request(bench: WorkerBench) -> str:
    """Let the worker generate an image; check its lists of ids (R-5.5) and RELEASE (R-5.12)."""
    bench.registered()
    request_id = bench.work(inline_bytes=MAX_INLINE_BYTES, attempt=3)
    bench.report(lambda report: request_id in held(report), "expected a report that lists the request")
    result, _ = bench.result(request_id)
    expect(result.attempt == 3, f"attempt {result.attempt}, WORK had 3")
    expect(result.images[0].seed == SEED, f"seed {result.images[0].seed}, the body had {SEED}")
    bench.report(lambda report: request_id in report.finished, "expected the id among `finished`")
    bench.broker.send(Release(request_ids=[request_id, new_id()]))
    bench.report(lambda report: request_id not in held(report), "expected a report without the released id")
    return f"{result.images[0].width} × {result.images[0].height} pixels, {result.generation_seconds:.2f} s"


@CHECKS("R-5.11", "a repeated WORK and RESEND repeat the answer")
def repeated_work(bench: WorkerBench) -> str:
    """Send WORK and RESEND for an answered request."""
    bench.registered()
    request_id = bench.work(inline_bytes=0)
    first, images = bench.result(request_id)
    for action in ("work", "resend"):
        if action == "work":
            bench.work(request_id=request_id, inline_bytes=0, attempt=2)
        else:
            bench.broker.send(Resend(request_ids=[request_id, new_id()]))
        again, same = bench.result(request_id)
        expect(same == images, f"{action} gave other images")
        expect(again.payload_id == first.payload_id, f"{action} gave another payload_id")
        expect(again.attempt == 2, f"attempt {again.attempt}, the last WORK had 2")
    bench.release(request_id)
    return "the same images and payload_id"


@CHECKS("R-2.1", "an answer of more than inline_bytes is fetched, and a smaller one is inline")
def inline(bench: WorkerBench) -> str:
    """Set inline_bytes to its limits."""
    bench.registered()
    fetched, large = bench.result(bench.work(inline_bytes=0))
    expect(fetched.frame_bytes == sizes_of(large), "an answer was sent inline with inline_bytes 0")
    inline, small = bench.result(bench.work(inline_bytes=MAX_INLINE_BYTES))
    size = sum(sizes_of(small))
    expect(not inline.frame_bytes or size > MAX_INLINE_BYTES, f"{size} bytes were not sent inline")
    return f"{sum(sizes_of(large)):,} bytes"


@CHECKS("R-2.2", "FETCH is answered with the bytes of its range")
def ranges(bench: WorkerBench) -> str:
    """Fetch parts twice, beyond the end, of an unknown payload, and after RELEASE (R-2.3)."""
    bench.registered()
    request_id = bench.work(inline_bytes=0)
    result, images = bench.result(request_id)
    data, payload_id = b"".join(images), result.payload_id
    assert payload_id is not None
    half = len(data) // 2
    pieces = {"start": half, "length": 9_999, "chunk_bytes": 5_000}
    again = download(bench.broker, request_id, payload_id, len(data), **pieces)
    expect(again == data[half:], "the same range has other bytes the second time")
    for wrong in ({"payload_id": payload_id, "offset": len(data)}, {"payload_id": new_id(), "offset": 0}):
        bench.broker.send({"type": "fetch", "request_id": request_id, "length": 100, **wrong})
    bench.release(request_id)
    bench.broker.send(Fetch(request_id=request_id, payload_id=payload_id, offset=0, length=100))
    bench.wait(2 * INTERVAL)
    expect(bench.broker.take(Chunk) is None, "a CHUNK beyond the end, of an unknown or of a released payload")
    return f"{len(data):,} bytes"


@CHECKS("R-2.9", "the payload of WORK is fetched")
def fetched_work(bench: WorkerBench) -> str:
    """Let the worker fetch a long body within its window (R-2.6), after a stall (R-2.5)."""
    bench.registered()
    prompt = "\N{LARGE RED CIRCLE}" * MAX_PROMPT_LENGTH
    frames = [msgpack.packb({"prompt": prompt, "seed": SEED})]
    upload = Upload(bench.broker, new_id(), b"", frames)
    upload.payload_id = upload.request_id
    bench.broker.send({"type": "work", "request_id": upload.request_id, "frame_bytes": sizes_of(frames)})
    upload.serve(8_000)
    bench.report(lambda report: upload.request_id in report.queued, "expected the request among `queued`")
    stray = Chunk(request_id=upload.request_id, payload_id=upload.payload_id, offset=upload.total - 1)
    bench.broker.send(stray, b"x")
    missing, stalled = upload.sent, False
    while not stalled:
        fetch = upload.next_fetch(seconds=bench.patience + 2 * SILENCE)
        expect(fetch.offset >= missing, f"FETCH at {fetch.offset}, {missing} bytes have arrived")
        stalled = fetch.offset == missing and any(
            each.offset <= missing < each.offset + each.length for each in upload.fetches[:-1]
        )
    upload.answer(fetch, upload.total)
    upload.serve()
    answer = bench.until(
        lambda: any(getattr(each.message, "request_id", b"") == upload.request_id for each in bench.broker.inbox),
        "expected RESULT or ERROR",
    )
    expect(answer, "no answer")
    tokens = [fetch.token for fetch in upload.fetches]
    expect(any(tokens), "no FETCH has a token")
    return f"{upload.total:,} bytes with {len(upload.fetches)} FETCHes; requested again at {missing:,}"


@CHECKS("R-4.13", "PROGRESS is sent for requests that want it")
def progress(bench: WorkerBench) -> str:
    """Send a request with `progress` and one without."""
    bench.registered()
    wanted, other = bench.work(progress=True), bench.work()
    bench.result(wanted)
    bench.result(other)
    found = [each.message for each in bench.broker.messages if isinstance(each.message, Progress)]
    ids = {each.request_id for each in found}
    expect(other not in ids, "PROGRESS of a request without `progress`")
    if wanted not in ids:
        raise NotTested("the worker sends no PROGRESS")
    steps = [each.step for each in found if each.request_id == wanted]
    expect(steps == sorted(steps), f"steps {steps}")
    return f"{len(steps)} messages, up to step {steps[-1]}"


@CHECKS("R-9.8", "an invalid body is answered with invalid_request")
def invalid_bodies(bench: WorkerBench) -> str:
    """Send bodies that break section 6."""
    bench.registered()
    bodies = [
        {"prompt": "a", "seed": -1},
        {"prompt": "", "seed": 1},
        {"prompt": "a"},
        {"prompt": "a", "seed": 1, "unknown": 1},
        {"prompt": "a", "seed": 1, "width": float("nan")},
        {"prompt": "a", "seed": 1, "inputs": ["image"]},
    ]
    for body in bodies:
        request_id = bench.work(msgpack.packb(body))
        bench.error(request_id, InvalidRequestError.code)
        bench.release(request_id)
    request_id = bench.work(b"\xc1")
    bench.error(request_id, InvalidRequestError.code)
    request_id = new_id()
    bench.broker.send({"type": "work", "request_id": request_id})
    bench.error(request_id, InvalidRequestError.code)
    return f"{len(bodies) + 2} ERRORs"


@CHECKS("R-4.21", "a body that contradicts the shape in the header is answered with invalid_request")
def contradicting_shapes(bench: WorkerBench) -> str:
    """Send WORK whose shape has another task, other LoRAs, or another number of steps than its body."""
    bench.registered()
    steps = msgpack.packb({"prompt": "a", "seed": 1, "num_inference_steps": 3})
    shapes = [{"task": "inpainting"}, {"loras": ["ink"]}, {"num_inference_steps": 2}]
    found = []
    for shape in shapes:
        request_id = bench.work(steps, shape=shape)
        found.append(bench.error(request_id, InvalidRequestError.code).message)
        bench.release(request_id)
    return found[-1][:80]


@CHECKS("R-4.17", "an unknown model is answered with model_not_found")
def unknown_model(bench: WorkerBench) -> str:
    """Ask for a model of a random name."""
    bench.registered()
    error = bench.error(bench.work(model=f"missing-{new_id().hex()}"), ModelNotFoundError.code)
    return error.message[:60]


@CHECKS("R-9.1", "a header that can't be read is answered with protocol_error")
def unreadable_headers(bench: WorkerBench) -> str:
    """Send unreadable headers; R-9.2: and other versions."""
    bench.registered()
    request_id = new_id()
    bench.broker.send({"type": "dance"})
    bench.error(None, ProtocolError.code)
    bench.broker.send({"type": "work", "request_id": request_id, "timeout_seconds": 0}, BODY)
    bench.error(request_id, ProtocolError.code)
    for version in ({}, {"v": 1}):
        header = msgpack.packb({"type": "work", "request_id": request_id, **version})
        bench.broker.socket.send_multipart([bench.broker.peer, header, BODY])
        bench.error(request_id, UnsupportedVersionError.code)
    report = bench.report(lambda report: True, "expected that the worker continues")
    expect(request_id not in held(report), "the worker took a request that can't be read")
    return "4 ERRORs, and the worker continues"


@CHECKS("R-1.2", "unknown keys are ignored")
def unknown_keys(bench: WorkerBench) -> str:
    """Send WORK with keys of a later version."""
    bench.registered()
    request_id = bench.work(later={"a": [None]})
    bench.result(request_id)
    return "RESULT"


@CHECKS("R-5.18", "a deadline ends a request with deadline_exceeded")
def deadline(bench: WorkerBench) -> str:
    """Send a request whose deadline has almost passed."""
    bench.registered()
    bench.error(bench.work(timeout_seconds=0.001), DeadlineExceededError.code)
    return "ERROR"


@CHECKS("R-5.12", "RELEASE ends requests in any state, without an answer")
def release(bench: WorkerBench) -> str:
    """Release requests at once."""
    ready = bench.registered()
    ids = [bench.work() for _ in range(min(ready.capacity, 8))]
    bench.report(lambda report: set(ids) <= held(report), "expected a report that lists all requests")
    bench.release(*ids)
    bench.wait(INTERVAL)
    bench.broker.inbox.clear()
    bench.result(bench.work())
    return f"{len(ids)} requests released; the next one was answered"


@CHECKS("R-5.4", "a silent broker leads to a new connection, and nothing is lost")
def silent_broker(bench: WorkerBench) -> str:
    """Send nothing while the worker holds an unacknowledged answer."""
    bench.registered()
    request_id = bench.work()
    _, images = bench.result(request_id)
    broker = bench.broker
    number, before = broker.connection_count(), broker.peer
    broker.is_silent = True
    broker.registers = False
    seconds = bench.patience + 2 * SILENCE
    bench.until(lambda: broker.connection_count() > number, "expected a new connection", seconds)
    expect(broker.peer != before, "the new connection has the same routing id")
    broker.is_silent = False
    ready = bench.registered()
    expect(request_id in ready.finished, "READY does not list the answer")
    broker.send(Resend(request_ids=[request_id]))
    _, again = bench.result(request_id)
    expect(again == images, "RESEND gave other images")
    return "new routing id; READY listed the answer"


@CHECKS("R-5.17", "DRAIN returns queued requests, finishes running ones, and ends with GOODBYE")
def drain(bench: WorkerBench) -> str:
    """Drain a full worker. This must be the last check, because the worker exits."""
    ready = bench.registered()
    ids = [bench.work() for _ in range(min(ready.capacity, 64))]
    bench.report(lambda report: set(ids) <= held(report), "expected a report that lists all requests")
    bench.broker.send(Drain())
    late = bench.work()
    bench.error(late, RETURNED)
    returned: set[bytes] = set()

    def is_idle() -> bool:
        while (error := bench.broker.take(Error)) is not None:
            assert isinstance(error.message, Error)
            expect(error.message.code == RETURNED, f"ERROR {error.message.code} while it drains")
            returned.add(error.message.request_id or b"")
        report = bench.broker.report
        return report is not None and not report.queued and not report.running

    bench.until(is_idle, "expected that running requests end")
    report = bench.broker.report
    expect(isinstance(report, WorkerHeartbeat) and report.state == "draining", "the state is not `draining`")
    bench.broker.send(Release(request_ids=ids))
    bench.receive(bench.broker, Goodbye)
    return f"{len(returned)} of {len(ids)} returned, the others finished; GOODBYE"
