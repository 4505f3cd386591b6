"""Checks of a client."""

import time
from itertools import pairwise

import msgpack

from imagegen_protocol.conformance.client_bench import PNG, ClientBench
from imagegen_protocol.conformance.fake_broker import INTERVAL, SILENCE, Upload, download
from imagegen_protocol.conformance.images import png
from imagegen_protocol.conformance.peers import has, lists, new_id
from imagegen_protocol.conformance.report import Checks, NotTested, Violation, expect
from imagegen_protocol.costs import check_shape
from imagegen_protocol.errors import (
    CancelledError,
    GenerationFailedError,
    ImagegenError,
    OverloadedError,
    ProtocolError,
)
from imagegen_protocol.frames import decode_from_client
from imagegen_protocol.messages import (
    Ack,
    Chunk,
    ClientHeartbeat,
    Error,
    Fetch,
    Goodbye,
    Progress,
    Stats,
    StatsQuery,
    Submit,
)
from imagegen_protocol.request import check_frames, parse_request

CHECKS: Checks[ClientBench] = Checks()


@CHECKS("R-4.2", "a client that gets no answer opens a new connection after about 3 s")
def no_answer(bench: ClientBench) -> str:
    """Answer nothing at first."""
    bench.broker.is_silent = True
    bench.until(lambda: bench.broker.messages, "no client connected")
    first = bench.broker.messages[0].at
    bench.until(lambda: bench.broker.connection_count() >= 2, "expected a new connection", bench.patience + 3)
    seconds = bench.broker.messages[0].at - first
    expect(seconds > 1, f"a new connection after {seconds:.2f} s")
    return f"after {seconds:.2f} s"


@CHECKS("R-4.1", "the client connects and sends a message that registers it")
def first_message(bench: ClientBench) -> str:
    """Wait for the first message."""
    bench.until(lambda: bench.broker.messages, "expected a message")
    first = bench.broker.messages[0].message
    expect(not isinstance(first, Goodbye), "the first message is GOODBYE")
    return f"{first.__class__.__struct_config__.tag}"


@CHECKS("R-1.7", "the routing id has 16 bytes")
def routing_id(bench: ClientBench) -> str:
    """Examine the routing id; a ROUTER generates one of 5 bytes for a peer that sets none."""
    expect(len(bench.broker.peer) == 16, f"a routing id of {len(bench.broker.peer)} bytes")
    return bench.broker.peer.hex()


@CHECKS("R-6.1", "the body of SUBMIT is valid, has a seed, and agrees with the header")
def body(bench: ClientBench) -> str:
    """Parse the body as a worker does; compare it with `images` (R-4.20) and `shape` (R-4.21)."""
    request = bench.next()
    frames = bench.payload(request)
    try:
        parsed = parse_request(frames[0])
        check_frames(parsed, len(frames) - 1)
        check_shape(request.submit.shape, parsed)
    except ImagegenError as error:
        raise Violation(error.message) from error
    expect(parsed.num_images == request.submit.images, f"num_images {parsed.num_images}, images differs")
    bench.finish(request)
    return f"{len(frames)} frames, seed {parsed.seed}"


@CHECKS("R-4.2", "the client sends a HEARTBEAT in each interval while it has requests")
def heartbeats(bench: ClientBench) -> str:
    """Measure the time between two messages."""
    request = bench.next()
    bench.wait(5 * INTERVAL)
    times = [each.at for each in bench.broker.messages if isinstance(each.message, ClientHeartbeat)][-5:]
    expect(len(times) >= 2, f"{len(times)} heartbeats in {5 * INTERVAL:g} s")
    longest = max(later - earlier for earlier, later in pairwise(times))
    expect(longest < SILENCE, f"{longest:.2f} s between two heartbeats")
    bench.finish(request)
    return f"at most {longest:.2f} s apart"


@CHECKS("R-4.6", "SUBMIT is repeated unchanged until it is accepted")
def repeated_submit(bench: ClientBench) -> str:
    """Accept a request only after it was repeated."""
    request = bench.fresh()
    bench.accepts = False
    bench.until(lambda: len(request.submits) >= 2, "expected SUBMIT again", bench.patience + 2 * INTERVAL)
    first, second = request.submits[:2]
    expect(_constant_keys(first.header) == _constant_keys(second.header), "the header was changed")
    expect(first.frames == second.frames, "the frames were changed")
    bench.accept(request.id)
    bench.wait(2 * INTERVAL)
    number = len(request.submits)
    bench.wait(4 * INTERVAL)
    expect(len(request.submits) == number, "SUBMIT was repeated after ACCEPTED")
    bench.finish(request)
    bench.acked(request.id)
    return f"again after {second.at - first.at:.2f} s, and no more after ACCEPTED"


def _constant_keys(header: bytes) -> dict[str, object]:
    message = decode_from_client(header)
    names = message.__struct_fields__
    return {name: getattr(message, name) for name in names if name not in ("timeout_seconds", "inline_bytes")}


@CHECKS("R-4.5", "a new session or epoch makes the client send SUBMIT again")
def new_session(bench: ClientBench) -> str:
    """Change the session, then the epoch."""
    request = bench.next()
    for change in ("session", "epoch"):
        number = len(request.submits)
        if change == "session":
            bench.broker.sessions += 1
        else:
            bench.broker.epoch = new_id()
        bench.broker.heartbeat()
        bench.until(
            lambda before=number: len(request.submits) > before,  # type: ignore[misc]
            f"expected SUBMIT after another {change}",
        )
    bench.finish(request)
    return "after both"


@CHECKS("R-4.7", "each terminal answer is acknowledged, also a repeated one")
def acknowledgement(bench: ClientBench) -> str:
    """Send RESULT twice, an ERROR, and answers to unknown requests."""
    request, failed, unknown = bench.next(), bench.next(), new_id()
    for _ in range(2):
        bench.broker.send(bench.result(request.id, request.submit.images), *[PNG] * request.submit.images)
        bench.acked(request.id)
    error = Error(code=GenerationFailedError.code, message="a test", request_id=failed.id)
    for _ in range(2):
        bench.broker.send(error)
        bench.acked(failed.id)
    bench.broker.send(bench.result(unknown), PNG)
    bench.acked(unknown, "expected ACK of an unknown id")
    unknown = new_id()
    bench.broker.send(bench.result(unknown, payload_id=new_id(), frame_bytes=[10**6]))
    bench.acked(unknown, "expected ACK of an unknown id whose payload would have to be fetched")
    return "RESULT and ERROR twice, and unknown ids"


@CHECKS("R-4.8", "an ERROR without request_id changes nothing")
def error_without_id(bench: ClientBench) -> str:
    """Send an ERROR without a request id, and check that the client continues."""
    request = bench.next()
    bench.broker.send(Error(code=ProtocolError.code, message="a test"))
    bench.wait(2 * INTERVAL)
    bench.finish(request)
    bench.acked(request.id)
    return "the request ended with its RESULT"


@CHECKS("R-1.2", "unknown keys are ignored")
def unknown_keys(bench: ClientBench) -> str:
    """Send RESULT with unknown keys, and other messages with unknown ids (R-9.22)."""
    request = bench.next()
    bench.broker.send({"type": "accepted", "request_ids": [new_id()], "later": {"a": 1}})
    bench.broker.send(Progress(request_id=new_id(), step=1, steps=2))
    bench.broker.send(Stats(request_id=new_id()), msgpack.packb({}))
    images = request.submit.images
    info = {"format": "png", "width": 8, "height": 8, "seed": 2**63 - 1, "later": 1}
    bench.broker.send(
        {
            "type": "result",
            "request_id": request.id,
            "worker": "w",
            "model": "m",
            "images": [info] * images,
            "later": [None],
        },
        *[PNG] * images,
    )
    bench.acked(request.id)
    return "RESULT with unknown keys was acknowledged"


@CHECKS("R-9.3", "a message that can't be read is answered by nothing but ACK")
def unreadable(bench: ClientBench) -> str:
    """Send an unknown type, bytes that are no message, and a RESULT with a negative width."""
    first, second = bench.next(), bench.next()
    bench.broker.send({"type": "dance"})
    bench.broker.socket.send_multipart([bench.broker.peer, b"\xc1"])
    bad = {"format": "png", "width": -1, "height": 8, "seed": 7}
    keys = {"type": "result", "worker": "w", "model": "m", "images": [bad]}
    bench.broker.send({**keys, "request_id": first.id}, PNG)
    bench.acked(first.id, "expected ACK of a RESULT that can't be read")
    bench.claimed.pop(first.id)
    bench.finish(second)
    bench.acked(second.id, "expected that the client continues")
    return "ACK; the client continues"


@CHECKS("R-9.9", "a RESULT with a wrong number of frames is acknowledged")
def wrong_frames(bench: ClientBench) -> str:
    """Send one frame more than there are descriptions."""
    request = bench.next()
    images = request.submit.images
    bench.broker.send(bench.result(request.id, images), *[PNG] * (images + 1))
    bench.acked(request.id)
    bench.claimed.pop(request.id)
    return "ACK"


@CHECKS("R-2.8", "a large answer is fetched, and acknowledged when it is complete")
def fetched_answer(bench: ClientBench) -> str:
    """Let the client fetch an answer within its window (R-2.6), and check its tokens (R-2.7)."""
    request = bench.next()
    upload = bench.offer(request)
    upload.serve(upload.total - 1_000)
    early = bench.broker.take(Ack, lists(request.id))
    expect(early is None, "ACK before the last chunk")
    upload.serve()
    ack = bench.acked(request.id)
    bench.claimed.pop(request.id)
    expect(ack.token == upload.last_token, "ACK does not have the token of the last chunk")
    largest = max(fetch.length for fetch in upload.fetches)
    return f"{upload.total:,} bytes with {len(upload.fetches)} FETCHes of at most {largest:,}"


@CHECKS("R-2.5", "missing chunks are requested again, and unexpected ones ignored")
def stalled_answer(bench: ClientBench) -> str:
    """Leave FETCHes unanswered after the first chunks."""
    request = bench.next()
    upload = bench.offer(request)
    upload.serve(8_000)
    stray = Chunk(request_id=request.id, payload_id=upload.payload_id, offset=upload.total - 1)
    bench.broker.send(stray, b"x")
    missing = upload.sent
    again = 0
    fetch: Fetch | None = None
    while fetch is None or fetch.offset != missing or again < 1:
        fetch = upload.next_fetch(seconds=bench.patience + 2 * SILENCE)
        again += sum(each.offset <= fetch.offset < each.offset + each.length for each in upload.fetches[:-1])
        expect(fetch.offset >= missing, f"FETCH at {fetch.offset}, {missing} bytes have arrived")
    upload.answer(fetch, upload.total)
    upload.serve()
    bench.acked(request.id)
    bench.claimed.pop(request.id)
    return f"FETCH at {missing:,} again"


@CHECKS("R-1.8", "the client opens a new connection when the broker is silent, and resumes (R-2.4)")
def silent_broker(bench: ClientBench) -> str:
    """Stop sending in the middle of an answer; then offer the same payload, and a different one."""
    request = bench.next()
    upload = bench.offer(request)
    upload.serve(20_000)
    number, before = bench.broker.connection_count(), bench.broker.peer
    bench.broker.is_silent = True
    seconds = bench.patience + 2 * SILENCE
    bench.until(lambda: bench.broker.connection_count() > number, "expected a new connection", seconds)
    expect(bench.broker.peer != before, "the new connection has the same routing id")
    bench.broker.is_silent = False
    bench.broker.heartbeat()
    submits = len(request.submits)
    bench.until(lambda: len(request.submits) > submits, "expected SUBMIT on the new connection")
    bench.broker.inbox.clear()
    upload.reconnected()
    bench.send_offer(upload)
    fetch = upload.next_fetch()
    expect(fetch.offset > 0, "the client began again at 0 with the same payload_id")
    expect(fetch.offset <= upload.sent, f"FETCH at {fetch.offset}, only {upload.sent} bytes were sent")
    other = Upload(bench.broker, request.id, new_id(), upload.frames)
    bench.send_offer(other)
    bench.until(
        lambda: bench.broker.take(Fetch, has(payload_id=other.payload_id, offset=0)), "expected FETCH at 0"
    )
    bench.send_offer(upload)
    bench.claimed.pop(request.id)
    bench.broker.send(Error(code=GenerationFailedError.code, message="a test", request_id=request.id))
    bench.acked(request.id)
    return f"new routing id; resumed at {fetch.offset:,}, and at 0 with another payload_id"


@CHECKS("R-4.8", "a client that the broker refuses comes back later")
def refused(bench: ClientBench) -> str:
    """Reject the client once, like a broker at its maximum of clients."""
    request = bench.next()
    number, start = bench.broker.connection_count(), time.monotonic()
    bench.broker.send(Error(code=OverloadedError.code, message="a test", retry_after_seconds=2.0))
    bench.broker.is_silent = True
    seconds = bench.patience + 2 * SILENCE
    bench.until(lambda: bench.broker.connection_count() > number, "expected a new connection", seconds)
    waited = time.monotonic() - start
    bench.broker.is_silent = False
    bench.broker.heartbeat()
    expect(waited >= 1.0, f"a new connection after {waited:.2f} s; retry_after_seconds was 2")
    submits = len(request.submits)
    bench.until(lambda: len(request.submits) > submits, "expected SUBMIT on the new connection")
    bench.finish(request)
    bench.acked(request.id)
    return f"after {waited:.2f} s; the request ended with its RESULT"


@CHECKS("R-2.2", "a payload of SUBMIT is sent in the requested chunks")
def fetched_submit(bench: ClientBench) -> str:
    """Fetch a payload twice, in different pieces, and from an offset."""
    request = bench.next(lambda each: each.is_fetched, what="no SUBMIT with more than 16,384 bytes arrived")
    total = sum(request.submit.frame_bytes)
    data = download(bench.broker, request.id, request.id, total)
    again = download(
        bench.broker, request.id, request.id, total, start=total // 2, length=50_000, chunk_bytes=9_999
    )
    expect(data[total // 2 :] == again, "the same range has other bytes the second time")
    for fields in ({"payload_id": new_id(), "offset": 0}, {"payload_id": request.id, "offset": total}):
        bench.broker.send({"type": "fetch", "request_id": request.id, "length": 100, **fields})
    bench.wait(INTERVAL)
    expect(bench.broker.take(Chunk) is None, "a CHUNK for an unknown payload or beyond the end")
    bench.finish(request)
    bench.acked(request.id)
    return f"{total:,} bytes in {len(request.submit.frame_bytes)} frames"


@CHECKS("R-2.7", "a preview is confirmed")
def preview(bench: ClientBench) -> str:
    """Send a preview with a token."""
    request = bench.next(lambda each: each.submit.preview, what="no SUBMIT with `preview` arrived")
    token = bench.broker.new_token()
    bench.broker.send(Progress(request_id=request.id, step=1, steps=2, token=token), png(16))
    bench.until(
        lambda: any(getattr(each.message, "token", b"") == token for each in bench.broker.messages),
        "expected a message with the token",
    )
    bench.finish(request)
    return "a message had the token"


@CHECKS("R-4.11", "CANCEL is repeated until it is answered")
def cancel(bench: ClientBench) -> str:
    """Answer nothing until the client cancels a request."""
    bench.cancels.clear()
    bench.answers_cancels = False
    try:
        first = bench.until(lambda: next(iter(bench.cancels), None), "no CANCEL arrived")
    except Violation as violation:
        raise NotTested(str(violation)) from violation
    bench.until(lambda: bench.cancels.count(first) >= 2, "expected CANCEL again")
    bench.requests.pop(first.request_id, None)
    bench.broker.send(Error(code=CancelledError.code, message="cancelled", request_id=first.request_id))
    bench.acked(first.request_id)
    return "repeated, and the answer acknowledged"


@CHECKS("R-4.12", "a query for statistics is repeated with the same id")
def statistics(bench: ClientBench) -> str:
    """Leave a query unanswered at first."""
    bench.broker.answers_statistics = False
    try:
        query, _ = bench.receive(bench.broker, StatsQuery)
    except Violation:
        raise NotTested("no STATS arrived") from None
    try:
        bench.receive(bench.broker, StatsQuery, has(request_id=query.request_id), what="expected STATS again")
    finally:
        bench.broker.answers_statistics = True
    bench.broker.send(Stats(request_id=new_id()), msgpack.packb({}))
    bench.broker.send(Stats(request_id=query.request_id), msgpack.packb({}))
    return "repeated"


@CHECKS("R-4.16", "a repeated SUBMIT has the seconds that are left")
def deadline(bench: ClientBench) -> str:
    """Compare timeout_seconds of two SUBMITs."""
    has_timeout = "no SUBMIT with `timeout_seconds` arrived"
    request = bench.next(lambda each: each.submit.timeout_seconds is not None, what=has_timeout)
    bench.broker.sessions += 1
    bench.wait(INTERVAL)
    bench.broker.sessions += 1
    bench.until(lambda: len(request.submits) >= 3, "expected SUBMIT twice more")
    messages = [each.message for each in request.submits]
    seconds = [each.timeout_seconds or 0.0 for each in messages if isinstance(each, Submit)]
    expect(0 < seconds[-1] < seconds[0], f"timeout_seconds {seconds}")
    bench.finish(request)
    return f"{seconds[0]:.2f} s, then {seconds[-1]:.2f} s"
