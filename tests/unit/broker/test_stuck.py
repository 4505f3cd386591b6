"""A worker whose device hangs while its heartbeats go on: noticed, relieved, and taken back when it wakes."""

import pytest

from imagegen_protocol.messages import ClientHeartbeat, Release, Resend
from tests.unit.broker.bench import Bench, rid


def hung(capacity=4, **settings):
    """A bench with a worker `w` that is stuck, and had request 1 running and request 2 waiting."""
    settings.setdefault("step_timeout", 10.0)
    bench = Bench(**settings).past_grace()
    bench.ready("w", capacity=capacity)
    bench.submit(1)
    bench.submit(2)
    bench.beat("w", running=[rid(1)], queued=[rid(2)], step_age_seconds=10.5)
    return bench


def state(bench, worker="w"):
    statistics = bench.core.statistics(bench.now)["per_gpu_stats"]
    return next(gpu["state"] for gpu in statistics if gpu["worker"] == worker)


def test_its_work_moves_on_with_the_next_attempt_and_its_copies_are_cancelled():
    bench = hung()
    bench.ready("v")
    assert bench.works("v") == [rid(1), rid(2)]
    bench.beat("w", running=[rid(1)], queued=[rid(2)], step_age_seconds=11.5)
    assert bench.ids(Release, "w") == [rid(1), rid(2)]
    totals = bench.core.statistics(bench.now)["totals"]
    assert totals["requeued"] == {"worker_stuck": 2}
    assert totals["workers_stuck"] == 1


def test_it_is_shown_as_stuck_and_gets_no_more_work():
    bench = hung()
    assert state(bench) == "stuck"
    bench.submit(3)
    assert rid(3) not in bench.works("w")


def test_when_it_wakes_it_is_a_worker_like_any_other():
    bench = hung()
    bench.beat("w", running=[], step_age_seconds=None)
    assert state(bench) == "ready"
    assert bench.works("w") == [rid(1), rid(2), rid(1), rid(2)]


def test_what_nobody_else_took_is_attached_again_when_it_wakes():
    bench = hung()
    bench.beat("w", running=[rid(1)], queued=[rid(2)], step_age_seconds=0.1)
    assert bench.works("w") == [rid(1), rid(2)]
    assert bench.ids(Resend, "w") == [rid(1), rid(2)]


def test_an_answer_from_it_counts_while_the_request_waits_and_is_dropped_once_it_went_elsewhere():
    bench = hung()
    bench.result("w", rid(2))
    assert bench.results() == [rid(2)]
    bench.ready("v")
    assert bench.works("v") == [rid(1)]
    bench.result("w", rid(1))
    assert bench.results() == [rid(2)]
    assert bench.ids(Release, "w") == [rid(1)]


def test_a_new_broker_does_not_attach_to_what_hangs():
    bench = Bench(step_timeout=10.0)
    bench.ready("w")
    bench.beat("w", running=[rid(1)], finished=[rid(2)], step_age_seconds=11.0)
    bench.submit(1)
    bench.submit(2)
    bench.past_grace()
    assert bench.ids(Resend, "w") == [rid(2)]
    bench.ready("v")
    assert bench.works("v") == [rid(1)]


def test_a_hang_counts_towards_poison_and_the_message_names_the_attempts():
    bench = Bench(step_timeout=10.0, max_attempts=2).past_grace()
    bench.submit(1)
    for name in ("a", "b"):
        bench.ready(name)
        bench.beat(name, running=[rid(1)], step_age_seconds=11.0)
        bench.client("c", ClientHeartbeat())
    assert bench.errors() == [(rid(1), "poison_request")]
    message = bench.sent[-1][2].message if hasattr(bench.sent[-1][2], "message") else ""
    texts = [m.message for _, _, m, _ in bench.sent if getattr(m, "code", "") == "poison_request"] or [message]
    assert texts == [
        "2 workers failed while running it: attempt 1 on 'a', which hung; attempt 2 on 'b', which hung"
    ]


@pytest.mark.parametrize("limit", [None, 0])
def test_it_can_be_turned_off(limit):
    bench = hung(step_timeout=limit)
    assert state(bench) == "ready"
    bench.ready("v")
    assert bench.works("v") == []
