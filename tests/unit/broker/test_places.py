"""What a client that follows its request is told while it waits at the broker."""

import pytest

from imagegen_broker.core.events import SendFailed, SendToClient
from imagegen_broker.scheduling import queue_positions
from imagegen_broker.scheduling.cost_estimates import REFERENCE
from imagegen_broker.scheduling.estimates import backlog_at, seconds_to_start
from imagegen_protocol.costs import CostModel, RequestShape
from imagegen_protocol.messages import ClientHeartbeat, Goodbye, Progress
from tests.unit.broker.bench import Bench, rid
from tests.unit.broker.test_costs import lines_of


def busy(seconds=4.0, **settings):
    """A worker that makes one at a time, in `seconds`, has one and has room for no more."""
    bench = Bench(**settings).past_grace()
    bench.ready("w", capacity=1, seconds_per_image=seconds)
    bench.submit(0)
    bench.beat("w", running=[rid(0)], seconds_per_image=seconds)
    return bench


def signs(bench, client="c"):
    return bench.messages(Progress, "client", client)


def tick(bench, *clients):
    for client in clients or ("c",):
        bench.client(client, ClientHeartbeat())
    worker = bench.core.workers.by_id.get(b"w")
    if worker is not None:
        bench.beat("w", running=list(worker.assigned), seconds_per_image=worker.seconds_per_image)
    bench.advance(1.0)


def test_place_and_seconds_are_told_on_acceptance_and_when_they_change():
    bench = busy()
    first, second = (bench.submit(number, progress=True) for number in (1, 2))
    told = [(s.request_id, s.state, s.place, s.seconds_to_start, s.attempt) for s in signs(bench)]
    assert told == [(first, "queued", 0, 4.0, 1), (second, "queued", 1, 8.0, 1)]
    bench.clear()
    tick(bench)
    tick(bench)
    assert signs(bench) == []
    bench.cancel(1)
    tick(bench)
    assert [(s.request_id, s.place, s.seconds_to_start) for s in signs(bench)] == [(second, 0, 4.0)]


def test_who_did_not_ask_is_told_nothing_and_counts_for_those_who_did():
    bench = busy()
    bench.submit(1)
    bench.submit(2, progress=True)
    tick(bench)
    assert bench.places() == [(rid(2), 1)]


def test_who_runs_is_told_no_place_any_more():
    bench = busy()
    bench.submit(1, progress=True)
    bench.clear()
    bench.ready("v", capacity=1)
    assert bench.works("v") == [rid(1)]
    tick(bench)
    assert bench.places() == []


def test_what_is_given_out_at_once_has_no_place():
    bench = Bench().past_grace()
    bench.ready("w")
    bench.submit(1, progress=True)
    tick(bench)
    assert bench.places() == []


def test_the_first_of_another_client_comes_in_between():
    bench = busy()
    for number in (1, 2, 3):
        bench.submit(number, progress=True)
    urgent = bench.submit(10, "d", progress=True, priority=5)
    fair = bench.submit(11, "d", progress=True)
    assert bench.places("d") == [(urgent, 0), (fair, 2)]
    bench.clear()
    tick(bench, "c", "d")
    assert bench.places() == [(rid(1), 1), (rid(2), 3), (rid(3), 4)]
    assert bench.places("d") == []


def test_what_comes_back_from_a_dead_worker_is_told_its_place_again():
    bench = busy()
    follows = bench.submit(1, progress=True)
    bench.cancel(0)
    assert bench.works("w")[-1] == follows
    bench.clear()
    bench.worker("w", Goodbye())
    (sign,) = signs(bench)
    assert (sign.request_id, sign.place, sign.attempt, sign.seconds_to_start) == (follows, 0, 2, None)


def test_who_asks_again_is_told_again_and_may_change_its_mind():
    bench = busy()
    request = bench.submit(1)
    bench.submit(1, progress=True)
    bench.submit(1, client="d", preview=True)
    assert bench.places() == bench.places("d") == [(request, 0)]
    bench.clear()
    bench.submit(1, client="d")
    bench.submit(2, client="d", priority=9)
    tick(bench, "d")
    assert bench.places("d") == []


def test_a_client_whose_connection_takes_nothing_is_told_when_it_does():
    bench = busy()
    bench.submit(1, progress=True)
    bench.submit(2, "d", priority=1)
    bench.handle(SendFailed(SendToClient(b"c", Progress(request_id=rid(1)))))
    bench.clear()
    bench.beat("w", running=[rid(0)], seconds_per_image=4.0)
    bench.advance(1.0)
    assert bench.places() == []
    tick(bench)
    assert bench.places() == [(rid(1), 1)]


def test_before_there_is_any_worker_the_place_is_known_and_the_time_is_not():
    bench = Bench()
    bench.submit(1, progress=True, model="m")
    (sign,) = signs(bench)
    assert (sign.place, sign.seconds_to_start) == (0, None)
    bench.ready("w", seconds_per_image=1.0)  # a new broker gives nothing yet
    bench.advance(1.0)
    assert signs(bench)[-1].seconds_to_start == 0.0


# ---- estimates ---------------------------------------------------------------------------------------------


def scheduler_with(*speeds, capacity=4, depth=4):
    """A scheduler of workers with these seconds an image, two of which they make at a time."""
    bench = Bench().past_grace()
    for index, seconds in enumerate(speeds):
        listed = [rid(100 * index + number) for number in range(depth)]
        bench.ready(f"w{index}", capacity=capacity, running=listed, seconds_per_image=seconds)
    return bench.core.scheduler


def estimated(scheduler, rate, place, ahead=None):
    """The estimated start of a request at a place, behind requests of one image or of so many seconds."""
    estimates = scheduler.estimates
    one = estimates.seconds(REFERENCE, "m")
    speed = estimates.speed("m") if estimates.is_measured("m") else 0.0
    backlog = backlog_at(scheduler.pool.serving("m"), one, speed, rate)
    return seconds_to_start(place, place * one if ahead is None else ahead, backlog)


@pytest.mark.parametrize(
    ("speeds", "rate", "place", "seconds"),
    [
        ((1.0,), 0.0, 0, 3.0),  # the two that wait there, and this one
        ((1.0,), 0.0, 3, 6.0),
        ((1.0, 1.0), 0.0, 3, 4.0),
        ((1.0, None), 0.0, 3, 4.0),
        ((1.0, 0.25), 0.0, 5, 2.0),
        ((None, None), 2.0, 1, 3.0),
    ],
)
def test_the_time_follows_from_speeds_and_depths(speeds, rate, place, seconds):
    assert estimated(scheduler_with(*speeds), rate, place) == pytest.approx(seconds)


def test_large_requests_ahead_take_longer_than_small_ones():
    scheduler = scheduler_with(1.0, depth=2)
    # Two images run; of the others and this one, all but two end before it starts.
    assert estimated(scheduler, 0.0, 2, ahead=2.0) == pytest.approx(3.0)
    assert estimated(scheduler, 0.0, 2, ahead=20.0) == pytest.approx(22.0 * 3 / 4)


def test_the_start_of_a_request_counts_the_sizes_of_those_before_it():
    bench = Bench().past_grace()
    costs = {"m": CostModel(forward_seconds=0.0, megapixel_seconds=1.0)}
    bench.ready("w", capacity=1, costs=costs)
    small, large = (
        RequestShape(width=100, height=100, num_inference_steps=10),
        RequestShape(width=1000, height=1000, num_inference_steps=10),
    )
    for number, shape in enumerate((small, large, small, small)):
        bench.submit(number, shape=shape, progress=True)
    bench.advance(2.0)
    starts = {sign.request_id: sign.seconds_to_start for sign in signs(bench)}
    # One runs at a time: 0.1 s, then 10 s, then 0.1 s.
    assert starts[rid(1)] == pytest.approx(0.1, abs=0.05)
    assert starts[rid(2)] == pytest.approx(10.1, abs=0.1)
    assert starts[rid(3)] == pytest.approx(10.2, abs=0.1)


def test_nothing_measured_no_time():
    assert estimated(scheduler_with(None), 0.0, 0) is None
    assert estimated(scheduler_with(), 5.0, 0) is None


# ---- costs -------------------------------------------------------------------------------------------------


def crowd(waiting, **settings):
    bench = Bench(max_requests=10**6, max_requests_per_client=10**6, **settings).past_grace()
    bench.check = lambda: None  # it looks at everything
    for number in range(waiting):
        bench.submit(number, f"client {number % 7}", model="m", progress=True)
    return bench


def test_an_interval_costs_the_same_however_many_wait():
    def cost(waiting):
        core = crowd(waiting).core
        return lines_of(core.positions.tick), lines_of(core.positions.tick)

    assert cost(4000) == cost(12000)


def test_an_acceptance_costs_the_same_however_many_wait():
    def cost(waiting):
        bench = crowd(waiting)
        return lines_of(lambda: bench.submit(10**6, "client 1", model="m", progress=True))

    assert cost(5000) == cost(50)


def test_in_an_interval_the_first_are_counted_and_the_others_told_by_turns(monkeypatch):
    monkeypatch.setattr(queue_positions, "EXACT_POSITIONS", 10)
    monkeypatch.setattr(queue_positions, "FURTHER_POSITIONS", 5)
    bench = crowd(30)
    bench.clear()
    urgent = bench.submit(99, "client 0", model="m", priority=1)
    told = []
    for _ in range(5):
        bench.client("client 0", ClientHeartbeat())
        for index in range(7):
            bench.client(f"client {index}", ClientHeartbeat())
        bench.clear()
        bench.advance(1.0)
        told.append([place for index in range(7) for place in bench.places(f"client {index}")])
    assert bench.core.scheduler.queue.peek("m").id == urgent
    assert [len(places) for places in told] == [14, 5, 5, 5, 1]
    everyone = [request for places in told for request, _ in places]
    assert set(everyone) == {rid(number) for number in range(30)}
