"""The places that clients are told, against the order in which their requests are really given out."""

from hypothesis import given, settings
from hypothesis import strategies as st

from imagegen_protocol.messages import Goodbye
from tests.unit.broker.bench import Bench, rid

CLIENTS = ("a", "b", "c")
events = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from(CLIENTS), st.integers(-1, 1)),
        st.tuples(st.just("cancel"), st.sampled_from(CLIENTS), st.integers(0, 40)),
        st.tuples(st.just("visit"), st.just("w"), st.integers(1, 4)),
    ),
    max_size=40,
)


def last_places(bench):
    """What the clients were told last of each request."""
    return {request: place for client in CLIENTS for request, place in bench.places(client)}


@given(events)
@settings(max_examples=150, deadline=None)
def test_requests_go_in_the_order_of_the_places_told(script):
    bench = Bench(max_attempts=100).past_grace()
    for number, (what, who, value) in enumerate(script):
        if what == "submit":
            request = bench.submit(number, who, model="m", priority=value, progress=True)
            waiting = [waits.id for waits in bench.core.scheduler.queue.in_order("m")]
            assert waiting.index(request) <= last_places(bench)[request] < len(waiting)
        elif what == "cancel":
            bench.cancel(value, who)
        else:
            bench.ready(who, capacity=value)  # it takes some, and leaves them to the head of the queue
            bench.worker(who, Goodbye())
    bench.advance(bench.core.settings.interval)
    places = last_places(bench)
    bench.ready("last", capacity=1000)
    went = bench.works("last")
    assert [places[request] for request in went] == list(range(len(went)))


@given(st.integers(1, 30), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_each_answer_moves_all_others_up_and_each_is_told_once(count, capacity):
    bench = Bench().past_grace()
    bench.ready("w", capacity=capacity, seconds_per_image=1.0)
    for number in range(count):
        bench.submit(number, progress=True)
    given_out = bench.works("w")
    while len(given_out) < count:
        bench.clear()
        running = [i for i in given_out if i in bench.core.workers.by_id[b"w"].assigned]
        bench.result("w", running[0])
        bench.beat("w", running=running[1:], finished=[running[0]], seconds_per_image=1.0)
        bench.ack(*[int.from_bytes(running[0], "big")])
        bench.advance(1.0)
        waiting = [rid(number) for number in range(len(given_out) + 1, count)]
        assert bench.places() == [(request, place) for place, request in enumerate(waiting)]
        given_out += bench.works("w")
