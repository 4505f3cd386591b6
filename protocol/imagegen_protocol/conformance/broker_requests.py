"""Checks of a broker: the life of a request between client and worker."""

import msgpack

from imagegen_protocol.conformance.broker_bench import BODY, IMAGE, BrokerBench
from imagegen_protocol.conformance.peers import lists, new_id
from imagegen_protocol.conformance.report import Checks, expect
from imagegen_protocol.costs import RequestShape
from imagegen_protocol.errors import CancelledError, DeadlineExceededError, InvalidRequestError, ModelNotFoundError
from imagegen_protocol.messages import (
    Accepted,
    Cancel,
    ClientHeartbeat,
    Error,
    Progress,
    Release,
    Resend,
    Result,
    Stats,
    StatsQuery,
    Submit,
    Work,
)

CHECKS: Checks[BrokerBench] = Checks()


@CHECKS("R-4.6", "a repeated SUBMIT is accepted again and dispatched once")
def repeated_submit(bench: BrokerBench) -> str:
    """Send SUBMIT three times, and again after the acknowledgement."""
    client, worker, request_id = bench.dispatched()
    for _ in range(2):
        client.send(Submit(request_id=request_id, model=bench.model), BODY)
        client.accepted(request_id)
    worker.answer(request_id, IMAGE)
    client.result(request_id)
    client.ack(request_id)
    bench.receive(worker, Release, lists(request_id))
    worker.forget(request_id)
    client.send(Submit(request_id=request_id, model=bench.model), BODY)
    other = client.submit(bench.model)
    work, _ = worker.work()
    expect(work.request_id == other, "a request was dispatched again after its acknowledgement")
    client.wait_for_heartbeats(1)
    repeated = client.take(Accepted, lists(request_id))
    expect(repeated is None, "an acknowledged request was accepted again")
    return "one WORK; the acknowledged id was ignored"


@CHECKS("R-4.7", "an answer is repeated until it is acknowledged")
def repeated_answer(bench: BrokerBench) -> str:
    """Do not acknowledge an ERROR of the broker and a RESULT."""
    client, worker, request_id = bench.dispatched()
    worker.answer(request_id, IMAGE)
    client.result(request_id)
    bench.receive(
        worker,
        Resend,
        lists(request_id),
        seconds=bench.patience + 2 * client.interval,
    )
    worker.answer(request_id, IMAGE)
    client.result(request_id)
    client.ack(request_id)
    bench.receive(worker, Release, lists(request_id))
    worker.forget(request_id)
    cancelled = client.submit(bench.model)
    client.send(Cancel(request_id=cancelled))
    client.error(cancelled, CancelledError.code)
    client.error(cancelled, CancelledError.code, seconds=bench.patience + 2 * client.interval)
    client.ack(cancelled)
    return "RESEND for the RESULT, and the ERROR twice"


@CHECKS("R-7.1", "RESULT is forwarded unchanged, and ACK becomes RELEASE")
def forwarded_result(bench: BrokerBench) -> str:
    """Compare WORK with SUBMIT, and both headers of RESULT."""
    worker, client = bench.registered_worker(), bench.connected_client()
    request_id = client.submit(bench.model)
    work, received = worker.work(request_id)
    expect(received.frames == [BODY], "the frames of WORK are not those of SUBMIT")
    expect(work.attempt == 1, f"attempt {work.attempt} of the first WORK")
    header = worker.answer(request_id, IMAGE, b"second", later="unknown")
    _, received = client.result(request_id)
    expect(received.header == header, "the header of RESULT was changed")
    expect(received.frames == [IMAGE, b"second"], "the frames of RESULT were changed")
    client.ack(request_id)
    bench.receive(worker, Release, lists(request_id))
    return "header and frames are the same bytes"


@CHECKS("R-8.1", "an ERROR of a worker is forwarded")
def forwarded_error(bench: BrokerBench) -> str:
    """Answer with a known code and with an unknown one."""
    client, worker = bench.connected_client(), bench.registered_worker()
    for code in (InvalidRequestError.code, "of_a_later_version"):
        request_id = client.submit(bench.model)
        worker.work(request_id)
        worker.finish(request_id)
        worker.send(Error(code=code, message="why", request_id=request_id))
        error = client.error(request_id, code)
        expect(error.message == "why", f"the message is {error.message!r}")
        client.ack(request_id)
    return "both codes"


@CHECKS("R-3.4", "another session that knows the id takes the request over")
def takeover(bench: BrokerBench) -> str:
    """Send SUBMIT with the same id from a second client."""
    client, worker, request_id = bench.dispatched()
    second = bench.connected_client()
    second.send(Submit(request_id=request_id, model=bench.model), BODY)
    second.accepted(request_id)
    worker.answer(request_id, IMAGE)
    second.result(request_id)
    expect(client.take(Result) is None, "the first session got the RESULT, too")
    second.ack(request_id)
    return "the second session got the RESULT"


@CHECKS("R-4.10", "the receive maximum of a client bounds its dispatched requests")
def receive_maximum(bench: BrokerBench) -> str:
    """Ask for a maximum of one, and send two requests."""
    worker, client = bench.registered_worker(), bench.connected_client()
    client.is_alive = False  # its own heartbeats would reset the maximum
    client.send(ClientHeartbeat(receive_maximum=1))
    first, second = client.submit(bench.model), client.submit(bench.model)
    worker.work(first)
    client.send(ClientHeartbeat(receive_maximum=1))
    client.wait_for_heartbeats(1)
    expect(worker.take(Work) is None, "two requests were dispatched")
    worker.answer(first, IMAGE)
    client.result(first)
    client.ack(first)
    worker.work(second)
    return "the second WORK followed the ACK"


@CHECKS("R-4.11", "CANCEL is answered in each state of a request")
def cancel(bench: BrokerBench) -> str:
    """Cancel an unknown request, a queued one and one at a worker."""
    worker, client = bench.registered_worker(capacity=1), bench.connected_client()
    unknown = new_id()
    client.send(Cancel(request_id=unknown))
    client.error(unknown, CancelledError.code)
    running, queued = client.submit(bench.model), client.submit(bench.model)
    worker.work(running)
    for request_id in (queued, running):
        client.send(Cancel(request_id=request_id))
        client.error(request_id, CancelledError.code)
        client.ack(request_id)
    bench.receive(worker, Release, lists(running))
    worker.forget(running)
    worker.wait_for_heartbeats(2)
    expect(worker.take(Work) is None, "a cancelled request was dispatched")
    return "unknown, queued, dispatched"


@CHECKS("R-4.12", "STATS repeats the id of the query")
def statistics(bench: BrokerBench) -> str:
    """Ask twice."""
    client = bench.connected_client()
    for _ in range(2):
        query = new_id()
        client.send(StatsQuery(request_id=query))
        stats, received = bench.receive(client, Stats)
        expect(stats.request_id == query, "STATS has another id than the query")
        frames = received.frames
        if stats.frame_bytes:
            expect(not frames and stats.payload_id is not None, "fetched, but with frames or no payload_id")
        else:
            expect(len(frames) == 1 and isinstance(msgpack.unpackb(frames[0]), dict), "no map of statistics")
    return f"{sum(stats.frame_bytes) or len(frames[0]):,} bytes"


@CHECKS("R-4.13", "PROGRESS of a worker is forwarded to clients that want it")
def progress(bench: BrokerBench) -> str:
    """Report progress of a request with `progress` and of one without."""
    client, worker = bench.connected_client(), bench.registered_worker()
    wanted, other = client.submit(bench.model, progress=True), client.submit(bench.model)
    works = [worker.work(wanted)[0], worker.work(other)[0]]
    expect([work.progress for work in works] == [True, False], "WORK does not repeat `progress`")
    for request_id in (other, wanted):
        worker.send(Progress(request_id=request_id, step=3, steps=9))
    found, _ = bench.receive(client, Progress, lambda each: each.state == "running")
    expect(found.request_id == wanted, "PROGRESS of a request without `progress`")
    expect((found.step, found.steps) == (3, 9), f"step {found.step} of {found.steps}")
    return "step 3 of 9"


@CHECKS("R-4.15", "traceparent and priority pass, and higher priority goes first")
def priorities(bench: BrokerBench) -> str:
    """Queue two requests of different priorities while the worker is full."""
    client, worker = bench.connected_client(), bench.registered_worker(capacity=1)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    first = client.submit(bench.model, traceparent=trace)
    work, _ = worker.work(first)
    expect(work.traceparent == trace, f"WORK has the traceparent {work.traceparent}")
    client.submit(bench.model, priority=-1)
    high = client.submit(bench.model, priority=5)
    worker.answer(first, IMAGE)
    client.result(first)
    client.ack(first)
    following, _ = worker.work()
    expect(following.request_id == high, "a request of lower priority was dispatched first")
    return "as expected"


@CHECKS("R-4.21", "the shape of SUBMIT is repeated in WORK")
def shapes(bench: BrokerBench) -> str:
    """Send a request with a shape and one without."""
    client, worker = bench.connected_client(), bench.registered_worker()
    for shape in (
        RequestShape(width=640, num_inference_steps=12, task="inpainting", loras=["ink"]),
        RequestShape(),
    ):
        request_id = client.submit(bench.model, shape=shape)
        work, _ = worker.work(request_id)
        expect(work.shape == shape, f"WORK has the shape {work.shape}, SUBMIT had {shape}")
        worker.answer(request_id, IMAGE)
        client.result(request_id)
        client.ack(request_id)
    return "2 shapes"


@CHECKS("R-4.16", "a deadline ends a request with deadline_exceeded")
def deadline(bench: BrokerBench) -> str:
    """Send a request with a short timeout to a worker that does not answer."""
    worker, client = bench.registered_worker(), bench.connected_client()
    request_id = client.submit(bench.model, timeout_seconds=1.0)
    work, _ = worker.work(request_id)
    left = work.timeout_seconds
    expect(left is not None and 0 < left <= 1.0, f"WORK has timeout_seconds {left}")
    client.error(request_id, DeadlineExceededError.code, seconds=bench.patience + 1)
    client.ack(request_id)
    bench.receive(worker, Release, lists(request_id))
    return f"{left:.3f} s left in WORK; RELEASE"


@CHECKS("R-4.17", "a model that no worker has served is answered with model_not_found")
def unknown_model(bench: BrokerBench) -> str:
    """Ask for a model of a random name."""
    bench.registered_worker()
    client = bench.connected_client()
    request_id = new_id()
    client.send(Submit(request_id=request_id, model=f"missing-{request_id.hex()}"), BODY)
    error = client.error(request_id, ModelNotFoundError.code)
    expect(bench.model in error.message, "the message does not list the served models")
    return error.message[:60]
