"""A client that does not acknowledge is held out of the dispatch; attempts have a bound for every reason."""

import pytest

from imagegen_broker.core.events import SendFailed, SendToWorker
from imagegen_broker.core.requeue_limits import REQUEUE_LIMITS
from imagegen_protocol.messages import ClientHeartbeat, Goodbye, Progress, Work
from tests.unit.broker.bench import Bench, rid
from tests.unit.broker.test_costs import lines_of
from tests.unit.broker.transfers import fleet

MOST = 4


def bench_at_maximum(waiting=3, **settings):
    """A bench whose client "mute" has as many answers as it may, and some requests that wait."""
    bench = Bench(max_unacknowledged_per_client=MOST, **settings).past_grace()
    bench.ready("w", capacity=MOST // 2, seconds_per_image=1.0)
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
    for number in range(50, 60):
        bench.result("w", rid(number))
        bench.ack(number, client="honest")
    assert bench.results("honest") == [rid(number) for number in range(50, 60)]
    assert len(bench.works("w")) == MOST + 10
    assert bench.core.statistics(bench.now)["held_clients"] == 1


def test_what_is_at_a_worker_counts_as_well():
    bench = Bench(max_unacknowledged_per_client=MOST).past_grace()
    bench.ready("w", capacity=MOST // 2)
    for number in range(10):
        bench.submit(number)
    for number in range(3):
        bench.result("w", rid(number))
    assert len(bench.works("w")) == MOST, "three are answered and one runs"
    bench.ack(0)
    assert len(bench.works("w")) == MOST + 1


def test_one_client_can_fill_a_fleet_whose_capacity_exceeds_the_setting():
    bench = Bench(max_unacknowledged_per_client=MOST).past_grace()
    for name in ("u", "v", "w"):
        bench.ready(name, capacity=MOST)
    for number in range(10 * MOST):
        bench.submit(number)
    works = {name: bench.works(name) for name in ("u", "v", "w")}
    assert [len(ids) for ids in works.values()] == [MOST] * 3
    for name, ids in works.items():
        for request_id in ids:
            bench.result(name, request_id)
    assert [len(bench.works(name)) for name in ("u", "v", "w")] == [2 * MOST] * 3, "twice the capacity"
    for name in ("u", "v", "w"):
        for request_id in bench.works(name)[MOST:]:
            bench.result(name, request_id)
    assert sum(len(bench.works(name)) for name in ("u", "v", "w")) == 6 * MOST, "and no more"


def test_the_maximum_follows_the_capacity_of_the_registered_workers():
    bench = Bench(max_unacknowledged_per_client=MOST).past_grace()
    queue = bench.core.scheduler.queue
    for name in ("v", "w"):
        bench.ready(name, capacity=MOST)
    for number in range(3 * MOST):
        bench.submit(number)
    for name in ("v", "w"):
        for request_id in bench.works(name)[:MOST]:
            bench.result(name, request_id)
    assert bench.core.clients.by_id[b"c"].unacknowledged == 3 * MOST
    assert not queue.is_paused(b"c"), "twice the capacity are allowed"
    bench.worker("v", Goodbye())
    assert queue.is_paused(b"c")
    bench.ready("v2", capacity=MOST)
    assert not queue.is_paused(b"c")


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
    assert not bench.core.table.requests
    assert bench.core.scheduler.queue.paused_clients == 0
    bench.submit(90, "mute")
    assert rid(90) in bench.works("w")


def test_a_request_that_another_client_takes_over_counts_for_that_client():
    bench = bench_at_maximum()
    bench.submit(0, "heir")
    clients = bench.core.clients.by_id
    assert (clients[b"mute"].unacknowledged, clients[b"heir"].unacknowledged) == (MOST, 1)
    assert bench.works("w")[-1] == rid(MOST), "there is room for one more"


def test_its_requests_have_no_time_of_a_start_and_are_in_no_others_way():
    bench = bench_at_maximum()
    bench.clear()
    bench.beat("w", finished=[rid(number) for number in range(MOST)], seconds_per_image=1.0)
    bench.advance(1.0)
    told = [sign for sign in bench.messages(Progress, "client", "mute") if sign.state == "queued"]
    assert {sign.seconds_to_start for sign in told} == {None}
    bench.beat("w", running=[rid(number) for number in range(1000, 1100)], seconds_per_image=1.0)
    bench.submit(50, "honest", progress=True)
    assert bench.places("honest") == [(rid(50), 0)]


def test_requests_of_a_paused_client_without_a_model_get_the_default_once_it_is_known():
    bench = Bench(max_unacknowledged_per_client=2).past_grace()
    for number in (1, 2, 3):
        bench.submit(number)
    bench.cancel(1)
    bench.cancel(2)
    bench.ready("w", capacity=1)
    assert bench.works("w") == []
    bench.ack(1)
    assert bench.works("w") == [rid(3)]


def test_the_choice_costs_the_same_however_many_clients_are_paused():
    def cost(paused):
        bench = Bench(max_unacknowledged_per_client=1).past_grace()
        bench.ready("w", capacity=1)
        bench.submit(10**6, "honest")
        for index in range(paused):
            for number in range(3):
                bench.submit(3 * index + number, f"mute {index}")
            bench.cancel(3 * index, f"mute {index}")
            bench.cancel(3 * index + 1, f"mute {index}")
        assert bench.core.scheduler.queue.paused_clients == paused
        return lines_of(lambda: bench.core.scheduler.queue.peek("m"))

    assert cost(300) == cost(5)


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
    assert bench.core.table.counters.requeued == {"answer_lost": 3}
    bench.ready("v", capacity=6)
    owners = [bench.core.table.requests[request].client.id for request in bench.works("v")]
    assert owners == [b"honest", b"mute"] * 3


def test_answers_that_are_lost_again_and_again_end_in_an_error():
    bench = Bench().past_grace()
    bench.ready("w", capacity=3)
    bench.submit(1, "mute")
    for _ in range(50):
        if rid(1) in bench.core.workers.by_id[b"w"].assigned:
            bench.result("w", rid(1))
        lose_answers(bench)
    (bound,) = [bound for bound in REQUEUE_LIMITS if "answer_lost" in bound.reasons]
    assert len(bench.works("w")) == bound.maximum + 1
    assert set(bench.errors("mute")) == {(rid(1), "generation_failed")}, "it is sent until it is acknowledged"
    assert f"answer_lost {bound.maximum + 1}" in bench.core.table.requests[rid(1)].answer.message
    bench.ack(1, client="mute")
    assert not bench.core.table.requests


def come_back(bench, name, reason):
    """Have the request that a worker was just given come back for a reason."""
    if reason == "returned":
        bench.error(name, rid(1), "returned")
    elif reason == "worker_left":
        bench.worker(name, Goodbye())
    elif reason == "worker_reconnected":
        bench.core.workers.remove(bench.core.workers.by_id[name.encode()], bench.now, reason=reason)
        bench.settle()
    elif reason == "unreachable":
        bench.handle(SendFailed(SendToWorker(name.encode(), Work(request_id=rid(1)))))
    elif reason == "lost":
        bench.beat(name)
        bench.advance(1.0)
        bench.beat(name)
    elif reason == "worker_stuck":
        bench.beat(name, queued=[rid(1)], step_age_seconds=1e6)
    else:
        bench.core.workers.remove_dead_worker(bench.core.workers.by_id[name.encode()], bench.now)
        bench.settle()


@pytest.mark.parametrize(
    ("reason", "most"), [(r, b.maximum) for b in REQUEUE_LIMITS for r in b.reasons if r != "answer_lost"]
)
def test_each_reason_to_come_back_has_a_bound_and_leads_to_no_poison(reason, most):
    bench = Bench().past_grace()
    bench.submit(1)
    for number in range(most + 1):
        assert bench.errors() == [], f"{number} times"
        bench.client("c", ClientHeartbeat())
        bench.ready(f"w{number}")
        come_back(bench, f"w{number}", reason)
        if f"w{number}".encode() in bench.core.workers.by_id:
            bench.worker(f"w{number}", Goodbye())
    assert bench.errors() == [(rid(1), "generation_failed")]
    assert f"{reason} {most + 1}" in bench.core.table.requests[rid(1)].answer.message


def test_deaths_while_it_ran_are_counted_apart():
    bench = Bench(max_attempts=30).past_grace()
    bench.submit(1)
    for number in range(29):
        bench.client("c", ClientHeartbeat())
        bench.ready(f"w{number}")
        bench.beat(f"w{number}", running=[rid(1)])
        come_back(bench, f"w{number}", "worker_lost")
    assert bench.errors() == []
    assert bench.core.table.requests[rid(1)].requeues == {}


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


def test_a_client_sets_its_own_maximum_of_unacknowledged_answers():
    bench = fleet()
    bench.client("c", ClientHeartbeat(receive_maximum=1))
    bench.submit(1)
    bench.submit(2)
    assert bench.works("w") == [rid(1)]
    bench.result("w", rid(1))
    assert bench.works("w") == [rid(1)]
    bench.ack(1)
    assert bench.works("w") == [rid(1), rid(2)]
