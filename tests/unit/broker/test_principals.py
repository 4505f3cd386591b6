"""Clients with the same key share their limits; clients without keys have their own."""

from imagegen_broker.core.events import ReceivedFromClient
from imagegen_protocol.messages import ClientHeartbeat, Error, Goodbye, Submit
from tests.unit.broker.bench import Bench, rid

ALICE, BOB = b"alice's key", b"bob's key"


def submit(bench, number, client, key=b"", size=4, priority=0, max_priority=100):
    message = Submit(request_id=rid(number), priority=priority)
    bench.handle(ReceivedFromClient(client.encode(), message, [bytes(size)], key, max_priority))


def test_connections_with_one_key_share_the_maximum_of_requests():
    bench = Bench(max_requests_per_client=2).past_grace()
    submit(bench, 1, "a1", ALICE)
    submit(bench, 2, "a2", ALICE)
    submit(bench, 3, "a3", ALICE)
    submit(bench, 4, "b", BOB)
    assert bench.errors("a3") == [(rid(3), "overloaded")]
    assert bench.errors("b") == []


def test_connections_with_one_key_share_the_maximum_of_bytes():
    bench = Bench(max_bytes_per_client=100).past_grace()
    submit(bench, 1, "a1", ALICE, size=60)
    submit(bench, 2, "a2", ALICE, size=60)
    assert bench.errors("a2") == [(rid(2), "overloaded")]


def test_connections_without_keys_have_limits_of_their_own():
    bench = Bench(max_requests_per_client=1).past_grace()
    submit(bench, 1, "a")
    submit(bench, 2, "b")
    assert bench.errors("b") == []


def test_connections_with_one_key_share_its_turns():
    bench = Bench().past_grace()
    for number in range(1, 7):
        submit(bench, number, f"a{number}", ALICE)
    submit(bench, 7, "b", BOB)
    submit(bench, 8, "b", BOB)
    bench.ready("w", capacity=4)
    assert bench.works("w") == [rid(1), rid(7), rid(2), rid(8)]


def heartbeat(bench, client, key):
    bench.handle(ReceivedFromClient(client.encode(), ClientHeartbeat(), (), key))


def test_a_key_leaves_others_as_many_places_as_it_takes():
    bench = Bench(max_clients=10).past_grace()
    for number in range(20):
        heartbeat(bench, f"a{number}", ALICE)
    assert len(bench.core.clients.by_id) == 5
    assert bench.errors("a5") == [(None, "overloaded")]
    for number in range(20):
        heartbeat(bench, f"b{number}", BOB)
    assert len(bench.core.clients.by_id) == 8
    heartbeat(bench, "c", b"carol's key")
    assert bench.errors("c") == []


def test_repeated_requests_give_no_unlimited_number_of_places():
    bench = Bench(max_clients=10).past_grace()
    submit(bench, 1, "a", ALICE)
    for number in range(40):
        submit(bench, 1, f"a{number}", ALICE)
    assert len(bench.core.clients.by_id) == 10


def test_what_has_ended_counts_no_more_and_nothing_is_kept():
    bench = Bench(max_requests_per_client=1).past_grace()
    submit(bench, 1, "a1", ALICE)
    bench.handle(ReceivedFromClient(b"a1", Goodbye(), (), ALICE))
    submit(bench, 2, "a2", ALICE)
    assert bench.errors("a2") == []
    bench.handle(ReceivedFromClient(b"a2", Goodbye(), (), ALICE))
    assert bench.core.clients._principals == {}


def test_a_priority_above_the_maximum_of_the_key_is_rejected():
    bench = Bench().past_grace()
    submit(bench, 1, "a", ALICE, priority=6, max_priority=5)
    submit(bench, 2, "a", ALICE, priority=5, max_priority=5)
    submit(bench, 3, "b", BOB, priority=6)
    assert bench.errors("a") == [(rid(1), "invalid_request")]
    assert bench.errors("b") == []
    (error,) = bench.messages(Error, "client", "a")
    assert error.message == "priority: the maximum of this client's key is 5, got 6"


def test_the_maximum_priority_of_a_connected_client_may_change():
    bench = Bench().past_grace()
    submit(bench, 1, "a", ALICE, priority=6)
    submit(bench, 2, "a", ALICE, priority=6, max_priority=0)
    assert bench.errors("a") == [(rid(2), "invalid_request")]
