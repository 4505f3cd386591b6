"""Checks of a broker: registration, liveness and recovery of workers."""

from imagegen_protocol.conformance.broker_bench import BODY, IMAGE, BrokerBench
from imagegen_protocol.conformance.peers import has, lists, new_id
from imagegen_protocol.conformance.report import Checks, NotTested, expect
from imagegen_protocol.errors import PoisonRequestError, WorkerNameTakenError
from imagegen_protocol.messages import Error, Release, Resend, Submit, Work

CHECKS: Checks[BrokerBench] = Checks()


@CHECKS("R-5.1", "READY is answered with a session, and a taken name with an ERROR")
def registration(bench: BrokerBench) -> str:
    """Register two workers of one name."""
    worker = bench.registered_worker()
    second = bench.worker(name=worker.ready.name)
    second.send(second.ready)
    error, _ = bench.receive(second, Error)
    expect(error.code == WorkerNameTakenError.code, f"ERROR {error.code} for a taken name")
    assert worker.heartbeat is not None
    return f"session {worker.heartbeat.session}; {error.code}"


@CHECKS("R-5.2", "a READY with the same worker_id replaces the connection")
def replaced_connection(bench: BrokerBench) -> str:
    """Register again on another connection while a request runs."""
    client, worker, request_id = bench.dispatched()
    worker.is_alive = False
    second = bench.worker(worker_id=worker.ready.worker_id, name=worker.ready.name)
    second.register(running=[request_id])
    second.answer(request_id, IMAGE)
    client.result(request_id)
    client.ack(request_id)
    bench.receive(second, Release, lists(request_id))
    return "the request stayed with the worker"


@CHECKS("R-5.4", "a silent worker counts as dead, and its requests go to others")
def silent_worker(bench: BrokerBench) -> str:
    """Send nothing while a request runs."""
    _, worker, request_id = bench.dispatched()
    worker.is_alive = False
    second = bench.registered_worker()
    work, _ = second.work(request_id, seconds=bench.patience + worker.silence + worker.interval)
    expect(work.attempt == 2, f"attempt {work.attempt} after the death of the first worker")
    return f"attempt 2 after {worker.silence:g} s of silence"


@CHECKS("R-5.6", "beat grows by one with each HEARTBEAT")
def beats(bench: BrokerBench) -> str:
    """Compare the beats of heartbeats."""
    worker = bench.registered_worker()
    worker.wait_for_heartbeats(3)
    numbers = [each.message.beat for each in worker.heartbeats]  # type: ignore[attr-defined]
    expect(numbers == list(range(numbers[0], numbers[0] + len(numbers))), f"beats {numbers}")
    return f"beats {numbers[0]} … {numbers[-1]}"


@CHECKS("R-5.7", "no more requests are dispatched than the capacity")
def capacity(bench: BrokerBench) -> str:
    """Send three requests to a worker with a capacity of two."""
    worker, client = bench.registered_worker(capacity=2), bench.connected_client()
    ids = [client.submit(bench.model) for _ in range(3)]
    for request_id in ids[:2]:
        worker.work(request_id)
    worker.wait_for_heartbeats(2)
    expect(worker.take(Work) is None, "a third request was dispatched")
    worker.answer(ids[0], IMAGE)
    worker.work(ids[2])
    return "the third WORK followed the first RESULT"


@CHECKS("R-5.10", "a request that the worker does not list is dispatched again")
def lost_work(bench: BrokerBench) -> str:
    """Omit a request from the report, as if WORK was lost."""
    _, worker, request_id = bench.dispatched()
    worker.forget(request_id)
    work, _ = worker.work(request_id)
    expect(work.attempt == 2, f"attempt {work.attempt} of the second WORK")
    return "WORK with attempt 2"


@CHECKS("R-5.10", "a lost answer is requested again")
def lost_answer(bench: BrokerBench) -> str:
    """List a request as finished, as if RESULT was lost."""
    client, worker, request_id = bench.dispatched()
    worker.finish(request_id)
    bench.receive(worker, Resend, lists(request_id))
    worker.answer(request_id, IMAGE)
    client.result(request_id)
    return "RESEND"


@CHECKS("R-5.13", "a request that a worker lists is not dispatched again")
def recovery(bench: BrokerBench) -> str:
    """List ids before their SUBMIT arrives."""
    finished, running = new_id(), new_id()
    worker = bench.worker()
    worker.register(finished=[finished], running=[running])
    client = bench.connected_client()
    for request_id in (finished, running):
        client.send(Submit(request_id=request_id, model=bench.model), BODY)
        client.accepted(request_id)
    for request_id in (finished, running):
        bench.receive(worker, Resend, lists(request_id))
        worker.answer(request_id, IMAGE)
        client.result(request_id)
        client.ack(request_id)
    expect(worker.take(Work) is None, "a request was dispatched that the worker lists")
    return "RESEND for both"


@CHECKS("R-5.13", "a worker receives RELEASE for a request that another one has")
def stray_holder(bench: BrokerBench) -> str:
    """List a request that was dispatched to another worker, and answer it."""
    _, _, request_id = bench.dispatched()
    other = bench.worker()
    other.register(queued=[request_id])
    bench.receive(other, Release, lists(request_id))
    other.answer(request_id, IMAGE)
    bench.receive(other, Release, lists(request_id))
    return "RELEASE for the list and for the answer"


@CHECKS("R-5.14", "a request that kills workers ends with poison_request")
def poison(bench: BrokerBench) -> str:
    """Stop several workers without GOODBYE, each while it runs the same request."""
    client, worker, request_id = bench.dispatched()
    if 3 * worker.silence > 60:
        raise NotTested(f"three deaths take {3 * worker.silence:g} s")
    alone = False
    for deaths in range(1, 11):
        worker.lists |= {"queued": [], "running": [request_id]}
        worker.beat()
        worker.wait_for_heartbeats(1)
        worker.is_alive = False
        replacement = bench.registered_worker()
        seconds = bench.patience + worker.silence + 2 * worker.interval
        bench.until_any([replacement, client], "expected WORK or ERROR", seconds)
        if client.take(Error, has(code=PoisonRequestError.code)):
            client.ack(request_id)
            expect(alone, "the last attempt had not `alone`")
            return f"after {deaths} deaths; the last attempt had `alone`"
        worker = replacement
        alone = worker.work(request_id)[0].alone
    raise AssertionError("not reached: the broker bounds the attempts") from None


@CHECKS("R-5.17", "a request that a worker returns goes to another one")
def returned(bench: BrokerBench) -> str:
    """Return a request."""
    client, worker, request_id = bench.dispatched()
    second = bench.registered_worker()
    worker.state = "draining"
    worker.give_back(request_id)
    second.work(request_id)
    expect(client.take(Error) is None, "the client got an ERROR")
    second.answer(request_id, IMAGE)
    client.result(request_id)
    return "WORK at the second worker; no ERROR at the client"


@CHECKS("R-5.17", "a draining worker gets no more work")
def draining(bench: BrokerBench) -> str:
    """Report that the worker drains."""
    worker, client = bench.registered_worker(), bench.connected_client()
    worker.state = "draining"
    worker.beat()
    worker.wait_for_heartbeats(1)
    request_id = client.submit(bench.model)
    worker.wait_for_heartbeats(2)
    expect(worker.take(Work) is None, "WORK for a draining worker")
    bench.registered_worker().work(request_id)
    return "the request waited for another worker"
