"""The fair queue against a slow, obvious model of it."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from imagegen_broker.core.records import Client, Request
from imagegen_broker.scheduling.fair_queue import FairQueue
from imagegen_protocol.messages import Submit

KEYS = {b"a1": b"alice's", b"a2": b"alice's", b"b": b"bob's", b"c": b""}
CLIENTS = [Client(id=name, session=1, last_received=0.0, key=key) for name, key in KEYS.items()]
"""Two of one key, one of another, and one without."""


def make(number, client, priority=0, model="m"):
    submit = Submit(request_id=number.to_bytes(16, "big"), priority=priority, images=1 + number % 3)
    return Request(submit, client, model, payload=(), arrived_at=0.0, seconds=float(submit.images))


steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["pause", "resume"]), st.integers(0, 3), st.just(0), st.just(False)),
        st.tuples(st.just("push"), st.integers(0, 3), st.integers(-1, 1), st.booleans()),
        st.tuples(st.just("take"), st.just(0), st.just(0), st.just(False)),
        st.tuples(st.just("remove"), st.integers(0, 50), st.just(0), st.just(False)),
    ),
    max_size=60,
)


@given(steps)
def test_it_holds_what_was_pushed_and_serves_the_highest_priority_and_the_returned_first(script):
    queue = FairQueue()
    waiting, paused = {}, set()
    for number, (what, which, priority, front) in enumerate(script):
        if what == "push":
            request = make(number, CLIENTS[which], priority)
            queue.push(request, requeued=front)
            waiting[request.id] = (request, front)
        elif what == "pause":
            queue.pause(CLIENTS[which])
            paused.add(CLIENTS[which].id)
        elif what == "resume":
            queue.resume(CLIENTS[which])
            paused.discard(CLIENTS[which].id)
        elif what == "take":
            request = queue.peek("m")
            ready = [(r, f) for r, f in waiting.values() if r.client.id not in paused]
            if not ready:
                assert request is None, "a paused client gets nothing"
                continue
            assert request is not None
            top = max(r.priority for r, _ in ready)
            assert request.priority == top
            returned = [r for r, f in ready if f and r.priority == top]
            if returned:
                own = [r for r in returned if r.client is request.client]
            else:
                own = [r for r, _ in ready if r.priority == top and r.client is request.client]
            assert request is own[0], "a client's requests go in the order of their arrival"
            queue.end_turn(request)
            queue.remove(request)
            del waiting[request.id]
        elif waiting:
            request, _ = list(waiting.values())[which % len(waiting)]
            queue.remove(request)
            del waiting[request.id]
        assert len(queue) == queue.waiting("m") == len(waiting)
        assert queue.seconds("m") == sum(r.seconds for r, _ in waiting.values() if r.client.id not in paused)
        assert queue.paused_clients == len(paused)
        ready = sum(r.client.id not in paused for r, _ in waiting.values())
        assert queue.ready_by_model() == ({"m": ready} if waiting else {})
        assert {request.id for request in queue} == set(waiting)
        for place, waits in enumerate(queue.in_order("m")):
            assert place <= queue.max_position(waits) < len(waiting)
    assert queue.models() == (["m"] if waiting else [])


@given(steps)
def test_the_order_that_is_foretold_is_the_one_in_which_they_go(script):
    queue = FairQueue()
    for number, (what, which, priority, front) in enumerate(script):
        if what == "push":
            queue.push(make(number, CLIENTS[which], priority), requeued=front)
        elif what in ("pause", "resume"):
            getattr(queue, what)(CLIENTS[which])
        elif what == "take" and (request := queue.peek("m")) is not None:
            queue.end_turn(request)
            queue.remove(request)
        elif what == "remove" and len(queue):
            queue.remove(list(queue)[which % len(queue)])
    foretold = list(queue.in_order("m"))
    assert list(queue) == foretold
    went = []
    ready = [request for request in foretold if not queue.is_paused(request.client.id)]
    assert foretold[: len(ready)] == ready, "requests of paused clients come last"
    while (request := queue.peek("m")) is not None:
        queue.end_turn(request)
        queue.remove(request)
        went.append(request)
    assert went == ready


def test_a_request_that_is_to_be_first_goes_before_its_clients_others_and_takes_its_clients_turn():
    queue = FairQueue()
    for number, owner in enumerate([0, 0, 2, 2]):
        queue.push(make(number, CLIENTS[owner]))
    queue.push(make(9, CLIENTS[2]), first=True)
    went = []
    while (request := queue.peek("m")) is not None:
        queue.end_turn(request)
        queue.remove(request)
        went.append(int.from_bytes(request.id, "big"))
    assert went == [0, 9, 1, 2, 3]


@given(st.lists(st.integers(0, 3), max_size=20), st.integers(0, 3))
def test_the_first_place_is_exact_for_a_client_that_has_just_come_and_for_one_alone(owners, newcomer):
    queue = FairQueue()
    for number, owner in enumerate(owners):
        queue.push(make(number, CLIENTS[owner]))
    request = make(99, CLIENTS[newcomer])
    queue.push(request)
    keys = {CLIENTS[owner].owner for owner in owners}
    if CLIENTS[newcomer].owner not in keys or set(owners) == {newcomer}:
        assert queue.max_position(request) == list(queue.in_order("m")).index(request)


def turns_of_all(owners, key):
    """Serve the requests of clients; return the keys of their turns, and the keys that then waited for one."""
    queue = FairQueue()
    for number, owner in enumerate(owners):
        queue.push(make(number, CLIENTS[owner]))
    left = Counter(key(CLIENTS[owner]) for owner in owners)
    while (request := queue.peek("m")) is not None:
        queue.end_turn(request)
        queue.remove(request)
        me = key(request.client)
        yield me, {other for other, count in left.items() if count and other != me}
        left[me] -= 1
    assert not any(left.values())


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60))
@settings(max_examples=50)
def test_between_two_turns_of_an_owner_every_other_owner_who_waits_has_one(owners):
    since: dict[bytes, set[bytes]] = {}
    for me, waiting in turns_of_all(owners, lambda client: client.owner):
        assert me not in since or since[me] >= waiting
        since[me] = set()
        for other in since:
            since[other].add(me)


@given(st.lists(st.integers(0, 1), min_size=1, max_size=30))
@settings(max_examples=50)
def test_the_clients_of_one_owner_take_turns_within_its_turn(owners):
    since: dict[bytes, set[bytes]] = {}
    for me, waiting in turns_of_all([*owners, 2, 2, 2], lambda client: client.id):
        waiting -= {b"b"}
        assert me == b"b" or me not in since or since[me] >= waiting
        since[me] = set()
        for other in since:
            since[other].add(me)


def test_a_key_with_many_connections_has_no_more_turns_than_another():
    queue = FairQueue()
    alice = [Client(id=b"a%d" % number, session=1, last_received=0.0, key=b"alice's") for number in range(100)]
    for number, client in enumerate(alice):
        queue.push(make(number, client))
    for number in range(3):
        queue.push(make(1000 + number, CLIENTS[2]))
    order = [request.client.key for request in queue.in_order("m")]
    assert order[:6] == [b"alice's", b"bob's"] * 3
