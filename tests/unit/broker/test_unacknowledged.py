"""A client that does not acknowledge is held out of the dispatch; attempts have a bound for every reason."""

import pytest

from imagegen_broker.core.attempts import BOUNDS
from imagegen_protocol.messages import ClientHeartbeat, Goodbye, Progress
from tests.unit.broker.bench import Bench, rid
from tests.unit.broker.test_costs import lines_of

MOST = 4


def bench_at_maximum(waiting=3, **settings):
    """A bench whose client "mute" has as many answers as it may, and some requests that wait."""
    bench = Bench(max_unacknowledged_per_client=MOST, **settings).past_grace()
    bench.ready("w", capacity=100, seconds_per_image=1.0)
    for number in range(MOST + waiting):
        bench.submit(number, "mute", progress=True)
    for number in range(MOST):
        bench.result("w", rid(number))
    return bench


def test_it_gets_no_more_than_its_maximum_and_others_are_served():
    bench = bench_at_maximum()
    assert bench.works("w") == [rid(number) for number in range(MOST)]
    for number in range(50, 60):
        bench.submit(number, "honest")
    assert bench.works("w")[MOST:] == [rid(number) for number in range(50, 54)], (
        "one more for each acknowledgement"
    )
    for number in range(50, 60):
        bench.result("w", rid(number))
        bench.ack(number, client="honest")
    assert bench.results("honest") == [rid(number) for number in range(50, 60)]
    assert bench.core.statistics(bench.now)["held_clients"] == 1


def test_what_is_at_a_worker_counts_as_well():
    bench = Bench(max_unacknowledged_per_client=MOST).past_grace()
    bench.ready("w", capacity=100)
    for number in range(10):
        bench.submit(number)
    assert len(bench.works("w")) == MOST
    bench.result("w", rid(0))
    assert len(bench.works("w")) == MOST
    bench.ack(0)
    assert len(bench.works("w")) == MOST + 1


@pytest.mark.parametrize("end", ["ack", "cancel and ack"])
def test_when_it_acknowledges_it_goes_on(end):
    bench = bench_at_maximum()
    if end == "ack":
        bench.ack(0, 1, client="mute")
        assert bench.works("w")[MOST:] == [rid(MOST), rid(MOST + 1)]
    else:
        bench.cancel(MOST, "mute")
        assert len(bench.works("w")) == MOST, "the answer to a CANCEL is to be acknowledged, too"
        bench.ack(MOST, 0, client="mute")
        assert bench.works("w")[MOST:] == [rid(MOST + 1)]


def test_when_it_leaves_nothing_is_left_of_it():
    bench = bench_at_maximum()
    bench.client("mute", Goodbye())
    assert not bench.core.ledger.requests
    assert bench.core.ledger.queue.held_clients == 0
    bench.submit(90, "mute")
    assert rid(90) in bench.works("w")


def test_a_request_that_another_client_takes_over_counts_for_that_client():
    bench = bench_at_maximum()
    bench.submit(0, "heir")
    clients = bench.core.ledger.clients
    assert (clients[b"mute"].unacknowledged, clients[b"heir"].unacknowledged) == (MOST, 1)
    assert bench.works("w")[-1] == rid(MOST), "there is room for one more"


def test_its_requests_have_no_time_of_a_start_and_are_in_no_others_way():
    bench = bench_at_maximum()
    told = [sign for sign in bench.messages(Progress, "client", "mute") if sign.state == "queued"]
    assert {sign.seconds_to_start for sign in told} == {None}
    bench.beat("w", running=[rid(number) for number in range(1000, 1100)], seconds_per_image=1.0)
    bench.submit(50, "honest", progress=True)
    assert bench.places("honest") == [(rid(50), 0)]


def test_held_requests_without_a_model_get_the_default_once_it_is_known():
    bench = Bench(max_unacknowledged_per_client=1).past_grace()
    bench.submit(1)
    bench.submit(2)
    bench.cancel(1)
    bench.ready("w")
    assert bench.works("w") == []
    bench.ack(1)
    assert bench.works("w") == [rid(2)]


def test_the_choice_costs_the_same_however_many_clients_are_held_out():
    def cost(held):
        bench = Bench(max_unacknowledged_per_client=1).past_grace()
        bench.ready("w", capacity=10_000)
        for number in range(held):
            bench.submit(2 * number, f"mute {number}")
            bench.submit(2 * number + 1, f"mute {number}")
        assert bench.core.ledger.queue.held_clients == held
        bench.core.from_client(b"honest", ClientHeartbeat(), (), bench.now)
        bench.settle()
        return lines_of(lambda: bench.core.ledger.queue.peek("m"))

    assert cost(500) == cost(5)


# ---- attempts ----------------------------------------------------------------------------------------------


def lose_answers(bench, worker="w"):
    """Have the worker drop all answers, as if others had pushed them out, until they are missed."""
    bench.client("mute", ClientHeartbeat())
    bench.beat(worker, finished=[])
    bench.advance(1.0)
    bench.beat(worker, finished=[])
    bench.client("mute", ClientHeartbeat())
    bench.advance(1.0)


def test_an_answer_that_is_lost_is_made_again_in_its_clients_turn():
    bench = Bench().past_grace()
    bench.ready("w", capacity=3)
    for number in range(3):
        bench.submit(number, "mute")
    for number in range(3):
        bench.result("w", rid(number))
    bench.beat("w", running=[rid(number) for number in range(1000, 1003)])
    for number in range(50, 53):
        bench.submit(number, "honest")
    bench.clear()
    for _ in range(3):
        bench.client("mute", ClientHeartbeat())
        bench.client("honest", ClientHeartbeat())
        bench.beat("w", running=[rid(number) for number in range(1000, 1003)])
        bench.advance(1.0)
    assert bench.core.ledger.counters.requeued == {"answer_lost": 3}
    bench.ready("v", capacity=6)
    owners = [bench.core.ledger.requests[request].client.id for request in bench.works("v")]
    assert owners == [b"honest", b"mute"] * 3


def test_answers_that_are_lost_again_and_again_end_in_an_error():
    bench = Bench().past_grace()
    bench.ready("w", capacity=3)
    bench.submit(1, "mute")
    for _ in range(50):
        if rid(1) in bench.core.ledger.workers[b"w"].assigned:
            bench.result("w", rid(1))
        lose_answers(bench)
    (bound,) = [bound for bound in BOUNDS if "answer_lost" in bound.reasons]
    assert len(bench.works("w")) == bound.most + 1
    assert set(bench.errors("mute")) == {(rid(1), "generation_failed")}, "it is sent until it is acknowledged"
    assert f"answer_lost {bound.most + 1}" in bench.core.ledger.requests[rid(1)].answer.message
    bench.ack(1, client="mute")
    assert not bench.core.ledger.requests


def come_back(bench, name, reason):
    """Have the request that a worker was just given come back for a reason."""
    if reason == "returned":
        bench.error(name, rid(1), "returned")
    elif reason == "worker_left":
        bench.worker(name, Goodbye())
    elif reason == "unreachable":
        bench.core.backend.unreachable(name.encode(), rid(1))
        bench.settle()
    elif reason == "lost":
        bench.beat(name)
        bench.advance(1.0)
        bench.beat(name)
    elif reason == "worker_stuck":
        bench.beat(name, queued=[rid(1)], step_age_seconds=1e6)
    else:
        bench.core.backend.remove(bench.core.ledger.workers[name.encode()], bench.now, died=True)
        bench.settle()


@pytest.mark.parametrize(
    ("reason", "most"), [(r, b.most) for b in BOUNDS for r in b.reasons if r != "answer_lost"]
)
def test_each_reason_to_come_back_has_a_bound_and_leads_to_no_poison(reason, most):
    bench = Bench().past_grace()
    bench.submit(1)
    for number in range(most + 1):
        assert bench.errors() == [], f"{number} times"
        bench.client("c", ClientHeartbeat())
        bench.ready(f"w{number}")
        come_back(bench, f"w{number}", reason)
        if f"w{number}".encode() in bench.core.ledger.workers:
            bench.worker(f"w{number}", Goodbye())
    assert bench.errors() == [(rid(1), "generation_failed")]
    assert f"{reason} {most + 1}" in bench.core.ledger.requests[rid(1)].answer.message


def test_deaths_while_it_ran_are_counted_apart():
    bench = Bench(max_attempts=30).past_grace()
    bench.submit(1)
    for number in range(29):
        bench.client("c", ClientHeartbeat())
        bench.ready(f"w{number}")
        bench.beat(f"w{number}", running=[rid(1)])
        come_back(bench, f"w{number}", "worker_lost")
    assert bench.errors() == []
    assert bench.core.ledger.requests[rid(1)].returns == {}


def test_a_rolling_restart_of_many_workers_costs_a_request_nothing():
    bench = Bench().past_grace()
    bench.submit(1)
    for number in range(60):
        bench.client("c", ClientHeartbeat())
        bench.ready(f"w{number}")
        come_back(bench, f"w{number}", "returned")
        bench.worker(f"w{number}", Goodbye())
    bench.ready("last")
    bench.result("last", rid(1))
    assert bench.results() == [rid(1)]
