"""What workers see: registration, exact depth, loss, death, return, drain, recovery."""

import pytest

from imagegen_broker.core.events import SendFailed, SendToWorker
from imagegen_protocol.messages import (
    BrokerHeartbeat,
    ClientHeartbeat,
    Error,
    Goodbye,
    Release,
    Resend,
    Work,
    WorkerStats,
)
from imagegen_protocol.statistics import Heartbeat
from tests.unit.broker.bench import Bench, rid


def fleet(*names, capacity=4, **settings):
    """A bench past its grace, with workers."""
    bench = Bench(**settings).past_grace()
    for name in names:
        bench.ready(name, capacity=capacity)
    return bench


def depth(bench, worker="w"):
    return bench.core.workers.by_id[worker.encode()].depth


def test_ready_is_answered_with_a_session():
    bench = fleet("w")
    (beat,) = bench.messages(BrokerHeartbeat, "worker", "w")
    assert beat.session == 1
    assert beat.beat == 1


def test_an_unknown_worker_is_told_that_it_has_no_session():
    bench = Bench()
    bench.beat("stranger")
    (beat,) = bench.messages(BrokerHeartbeat, "worker", "stranger")
    assert beat.session == 0


def test_a_name_that_is_taken_is_refused_until_its_holder_is_dead():
    bench = Bench()
    bench.ready("w1", name="gpu0")
    bench.ready("w2", name="gpu0")
    (error,) = bench.messages(Error, "worker", "w2")
    assert error.code == "worker_name_taken"
    assert "'gpu0'" in error.message
    bench.advance(5.0)
    bench.ready("w2", name="gpu0")
    assert list(bench.core.workers.by_id) == [b"w2"]


def test_the_same_process_on_a_new_socket_takes_its_own_place():
    bench = fleet("w")
    request = bench.submit(1)
    bench.ready("again", name="w", worker_id=b"w".ljust(16, b"\0"), running=[request])
    assert list(bench.core.workers.by_id) == [b"again"]
    assert bench.works("again") == []
    assert bench.ids(Resend, "again") == [request]


def test_a_worker_is_never_given_more_than_its_capacity():
    bench = fleet("w", capacity=2)
    for number in range(5):
        bench.submit(number)
    assert len(bench.works("w")) == 2
    bench.result("w", rid(0))
    assert len(bench.works("w")) == 3


def test_room_is_counted_in_images():
    bench = fleet("w", capacity=4)
    first = bench.submit(1, images=3)
    second, third = bench.submit(2, images=3), bench.submit(3)
    assert bench.works("w") == [first, second], "the last may ask for more than there is room for"
    bench.result("w", first)
    assert bench.works("w") == [first, second, third]


def test_a_request_of_more_images_than_a_worker_has_room_for_goes_where_it_is_idle():
    bench = fleet("w", capacity=2)
    request = bench.submit(1, images=16)
    assert bench.works("w") == [request]


def test_queue_depth_counts_images():
    bench = fleet("v", "w", capacity=8, strategy="queue-depth")
    bench.submit(1, images=4)
    for number in (2, 3, 4, 5):
        bench.submit(number)
    assert sorted([depth(bench, "v"), depth(bench, "w")]) == [1, 4]


def test_depth_counts_listed_and_dispatched_once_and_foreign_ids_too():
    bench = fleet("w")
    request = bench.submit(1)
    assert depth(bench) == 1
    bench.beat("w", running=[request], queued=[rid(50)])  # 50 came from another broker
    assert depth(bench) == 2
    bench.submit(2)
    assert depth(bench) == 3
    bench.result("w", request)
    bench.beat("w", finished=[request], queued=[rid(2)])
    assert depth(bench) == 1


def test_work_lost_on_the_way_is_given_again_but_never_too_early():
    bench = fleet("w")
    request = bench.submit(1)
    bench.beat("w", echo=1)  # sent before the worker could have seen the WORK
    assert bench.works("w") == [request]
    bench.advance(1.0)  # the broker's next beat
    bench.beat("w", echo=2)  # read after the WORK should have been
    assert bench.works("w") == [request, request]
    assert bench.core.table.counters.requeued["lost"] == 1


def test_a_heartbeat_of_an_older_session_proves_no_loss():
    bench = fleet("w")
    request = bench.submit(1)
    bench.beat("w", echo=99, session=42)
    assert bench.works("w") == [request]


def test_a_finished_answer_that_did_not_come_is_asked_for_once_a_round_trip():
    bench = fleet("w")
    request = bench.submit(1)
    bench.advance(1.0)
    bench.beat("w", finished=[request])
    bench.beat("w", finished=[request])
    assert bench.ids(Resend, "w") == [request]
    bench.advance(1.0)
    bench.beat("w", finished=[request])
    assert bench.ids(Resend, "w") == [request, request]
    bench.result("w", request)
    assert bench.results() == [request]


def test_the_requests_of_a_dead_worker_go_to_another_with_the_next_attempt():
    bench = fleet("w", capacity=2)
    first, second = bench.submit(1), bench.submit(2)
    bench.beat("w", running=[first], queued=[second])
    for _ in range(4):
        bench.client("c", ClientHeartbeat())
        bench.advance(1.0)
    bench.ready("v", capacity=1)
    assert bench.works("v") == [first]
    (work,) = bench.messages(Work, "worker", "v")
    assert work.attempt == 2
    assert bench.core.table.counters.workers_lost == 1


def test_requeued_requests_go_before_those_that_never_left():
    bench = fleet("w", capacity=1)
    first = bench.submit(1)
    bench.submit(2)
    bench.worker("w", Goodbye())
    bench.ready("v", capacity=1)
    assert bench.works("v") == [first]


def test_a_request_that_takes_workers_down_is_poison():
    bench = Bench(max_attempts=2).past_grace()
    request, bystander = bench.submit(1), bench.submit(2)
    for name in ("a", "b"):
        bench.ready(name)
        assert set(bench.works(name)) == {request, bystander}
        bench.beat(name, running=[request], queued=[bystander])
        for _ in range(4):
            bench.client("c", ClientHeartbeat())
            bench.advance(1.0)
    assert bench.errors() == [(request, "poison_request")]
    assert bench.messages(Error, "client", "c")[0].message == (
        "2 workers failed while running it: attempt 1 on 'a', which died; attempt 2 on 'b', which died"
    )
    bench.ready("d")
    assert bench.works("d") == [bystander]


def test_the_last_attempt_of_a_suspect_is_made_alone():
    bench = Bench().past_grace()
    request, bystander, late = bench.submit(1), bench.submit(2), rid(3)
    for name in ("a", "b"):
        bench.ready(name)
        bench.beat(name, running=[request, bystander])
        bench.worker(name, Goodbye())
    assert not any(work.alone for name in "ab" for work in bench.messages(Work, "worker", name)), "it left, alive"
    for name in ("d", "e"):
        bench.ready(name)
        bench.beat(name, running=[request, bystander])
        bench.core.workers.remove_dead_worker(bench.core.workers.by_id[name.encode()], bench.now)
        bench.settle()
    bench.submit(3)
    bench.ready("f")
    works = {work.request_id: work.alone for work in bench.messages(Work, "worker", "f")}
    assert works == {request: True, bystander: True, late: False}
    bench.beat("f", running=[request], queued=[bystander, late])
    bench.core.workers.remove_dead_worker(bench.core.workers.by_id[b"f"], bench.now)
    bench.settle()
    assert bench.errors() == [(request, "poison_request")], "whoever waited for its turn has done nothing"


@pytest.mark.parametrize(("most", "alone"), [(1, []), (2, [False, True]), (3, [False, False, True])])
def test_no_first_attempt_is_made_alone(most, alone):
    bench = Bench(max_attempts=most).past_grace()
    request = bench.submit(1)
    told = []
    while not bench.errors():
        name = f"w{len(told)}"
        bench.ready(name)
        told += [work.alone for work in bench.messages(Work, "worker", name)]
        bench.beat(name, running=[request])
        bench.core.workers.remove_dead_worker(bench.core.workers.by_id[name.encode()], bench.now)
        bench.settle()
    assert told == (alone or [False])


def test_a_worker_back_from_the_dead_is_relieved_of_what_moved_on():
    bench = fleet("w")
    moved, waiting = bench.submit(1), bench.submit(2)
    for _ in range(4):
        bench.client("c", ClientHeartbeat())
        bench.advance(1.0)
    bench.ready("v", capacity=1)
    assert bench.works("v") == [moved]
    bench.beat("w", running=[moved], queued=[waiting])
    assert bench.messages(BrokerHeartbeat, "worker", "w")[-1].session == 0
    bench.ready("w", running=[moved], queued=[waiting])
    assert bench.ids(Release, "w") == [moved]
    assert bench.ids(Resend, "w") == [waiting], "what nobody else has is attached, not made again"
    assert bench.works("w") == [moved, waiting]


def test_a_late_result_of_what_moved_on_is_dropped():
    bench = fleet("w")
    request = bench.submit(1)
    bench.core.table.requeue(bench.core.table.requests[request], "lost", bench.now)
    bench.ready("v", capacity=1)
    if bench.works("v") != [request]:
        pytest.fail("round-robin should have chosen the unused worker")
    bench.result("w", request)
    assert bench.results() == []
    assert bench.ids(Release, "w") == [request]


def test_a_result_is_taken_from_the_queue():
    bench = fleet("w", capacity=1)
    blocker, request = bench.submit(1), bench.submit(2)
    bench.result("w", request)  # made for this broker's predecessor
    assert bench.results() == [request]
    assert bench.works("w") == [blocker]


def test_a_new_broker_attaches_to_what_a_worker_holds():
    bench = Bench()
    bench.ready("w", queued=[rid(1)], running=[rid(2)], finished=[rid(3)])
    for number in (1, 2, 3):
        bench.submit(number)
    assert bench.ids(Resend, "w") == [rid(1), rid(2), rid(3)]
    bench.past_grace()
    assert bench.works("w") == []
    bench.result("w", rid(3))
    assert bench.results() == [rid(3)]


def test_a_new_broker_attaches_also_if_the_client_came_first():
    bench = Bench()
    request = bench.submit(1)
    bench.ready("w", finished=[request])
    assert bench.ids(Resend, "w") == [request]
    bench.past_grace()
    assert bench.works("w") == []


def test_ids_that_nobody_asks_for_are_left_alone_and_acknowledged_ones_released():
    bench = fleet("w")
    request = bench.submit(1)
    bench.result("w", request)
    bench.ack(1)
    bench.beat("w", finished=[request, rid(9)])
    assert bench.ids(Release, "w") == [request, request]
    assert bench.core.workers.by_id[b"w"].orphans == {rid(9)}
    bench.beat("w")
    assert not bench.core.workers.by_id[b"w"].orphans
    assert len(bench.core.table.holders) == 0


def test_an_unacknowledged_answer_that_died_with_its_worker_is_made_again():
    bench = fleet("w")
    request = bench.submit(1)
    bench.result("w", request)
    bench.worker("w", Goodbye())
    bench.ready("v")
    for _ in range(3):
        bench.client("c", ClientHeartbeat())
        bench.beat("v")
        bench.advance(1.0)
    assert bench.works("v") == [request]


def test_an_answer_found_again_is_not_made_again():
    bench = fleet("w")
    request = bench.submit(1)
    bench.result("w", request)
    for _ in range(1):
        bench.worker("w", Goodbye())
        bench.ready("w", finished=[request])
    for _ in range(3):
        bench.client("c", ClientHeartbeat())
        bench.beat("w", finished=[request])
        bench.advance(1.0)
    assert bench.works("w") == [request]
    assert request in bench.ids(Resend, "w")


def test_a_draining_worker_gives_back_and_gets_nothing_more():
    bench = fleet("w")
    request = bench.submit(1)
    bench.error("w", request, "returned")
    assert bench.errors() == []
    assert bench.works("w") == [request]
    bench.ready("v")
    assert bench.works("v") == [request]
    (work,) = bench.messages(Work, "worker", "v")
    assert work.attempt == 2
    bench.submit(2)
    assert bench.works("w") == [request]


def test_a_workers_error_is_terminal_and_passed_on():
    bench = fleet("w")
    request = bench.submit(1)
    bench.error("w", request, "out_of_memory")
    assert bench.errors() == [(request, "out_of_memory")]
    bench.ack(1)
    assert bench.ids(Release, "w") == [request]


def test_an_unreachable_worker_gets_nothing_until_it_is_heard():
    bench = fleet("w")
    request = bench.submit(1)
    (action,) = [a for a in bench.sent if isinstance(a[2], Work)]
    bench.handle(SendFailed(SendToWorker(b"w", action[2])))
    assert bench.works("w") == [request]
    bench.beat("w")
    assert bench.works("w") == [request, request]


def test_statistics_have_the_guides_fields():
    bench = Bench()
    bench.ready("w", gpu_uuid="GPU-1", version="1.2.3")
    bench.settle()
    bench.submit(1)
    bench.beat(
        "w", queued=[rid(1)], stats=WorkerStats(total_requests=6, total_batches=2, total_batched_requests=6)
    )
    (gpu,) = bench.core.statistics(bench.now)["per_gpu_stats"]
    assert (gpu["gpu_id"], gpu["gpu_uuid"], gpu["version"]) == (0, "GPU-1", "1.2.3")
    assert gpu["current_queue_depth"] == 1
    assert gpu["total_requests"] == 6
    assert gpu["total_batches"] == 2
    assert gpu["avg_batch_size"] == 3.0


def test_statistics_tell_the_version_and_the_heartbeats():
    statistics = (bench := Bench(version="1.2.3", interval=0.5, liveness=4)).core.statistics(bench.now)
    assert statistics["version"] == "1.2.3"
    assert statistics.heartbeat == Heartbeat(interval_seconds=0.5, liveness=4)


def test_the_number_of_workers_is_limited():
    bench = Bench(max_workers=2).past_grace()
    for name in ("a", "b", "c"):
        bench.ready(name)
    assert sorted(bench.core.workers.by_id) == [b"a", b"b"]
    [error] = bench.messages(Error, "worker", "c")
    assert error.code == "overloaded"
    bench.ready("a")
    bench.worker("b", Goodbye())
    bench.ready("c")
    assert sorted(bench.core.workers.by_id) == [b"a", b"c"]
