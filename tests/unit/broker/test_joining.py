"""What is in no hurry goes together: ACCEPTED, which a quick answer makes needless, and RELEASE of answers."""

import pytest

from imagegen_broker.core.events import SendFailed, SendToClient
from imagegen_broker.core.outbox import Outbox
from imagegen_protocol.messages import Accepted, Goodbye, Release
from tests.unit.broker.bench import Bench

JOIN = 0.02


@pytest.fixture
def bench():
    """A broker that serves with one worker, with room for more than is asked."""
    bench = Bench(join_seconds=JOIN)
    bench.ready("w", capacity=100)
    return bench.past_grace()


def test_requests_are_confirmed_together_and_in_time(bench):
    asked = [bench.submit(number) for number in range(3)]
    assert bench.accepted() == []
    assert bench.works("w") == asked, "they are not waited for"
    assert bench.core.next_deadline() == pytest.approx(bench.now + JOIN)
    bench.advance(JOIN)
    assert [message.request_ids for message in bench.messages(Accepted, "client", "c")] == [asked]
    assert bench.core.next_deadline() > bench.now + JOIN, "nothing is to be told any more"


def test_an_answer_makes_the_confirmation_needless(bench):
    quick, slow = bench.submit(1), bench.submit(2)
    bench.result("w", quick)
    bench.advance(JOIN)
    assert (bench.results(), bench.accepted()) == ([quick], [slow])


def test_so_does_an_error_of_the_brokers_own(bench):
    request = bench.submit(1)
    bench.cancel(1)
    bench.advance(JOIN)
    assert (bench.errors(), bench.accepted()) == ([(request, "cancelled")], [])


def test_an_answer_that_the_connection_does_not_take_confirms_nothing(bench):
    request = bench.submit(1)
    bench.handle(SendFailed(SendToClient(b"c", Accepted(request_ids=[]))))
    bench.result("w", request)
    bench.advance(JOIN)
    assert (bench.results(), bench.accepted()) == ([], [request])


def test_acknowledged_answers_are_released_together(bench):
    asked = [bench.submit(number) for number in range(3)]
    for request in asked:
        bench.result("w", request)
    bench.ack(0)
    bench.ack(1, 2)
    assert bench.ids(Release, "w") == []
    bench.advance(JOIN)
    assert [message.request_ids for message in bench.messages(Release, "worker", "w")] == [asked]


def test_a_worker_that_still_lists_what_it_will_be_told_to_forget_is_told_once(bench):
    request = bench.submit(1)
    bench.result("w", request)
    bench.ack(1)
    bench.beat("w", finished=[request])
    bench.advance(JOIN)
    assert bench.ids(Release, "w") == [request]


@pytest.mark.parametrize("end", [Bench.cancel, Bench.ack], ids=["cancelled", "known already"])
def test_what_is_not_made_yet_is_released_at_once(bench, end):
    request = bench.submit(1)
    end(bench, 1)
    assert bench.ids(Release, "w") == [request]


def test_nothing_is_told_to_those_who_left(bench):
    request = bench.submit(1)
    bench.result("w", request)
    bench.submit(2, client="d")
    bench.ack(1)
    bench.client("d", Goodbye())
    bench.worker("w", Goodbye())
    bench.clear()
    bench.advance(JOIN)
    assert (bench.ids(Release, "w"), bench.accepted("d")) == ([], [])


def test_messages_for_a_client_that_has_left_leave_no_deadline():
    outbox = Outbox(0.02)
    outbox.accept(b"client", bytes(16))
    outbox.flush(1.0)
    assert outbox.deadline == 1.02
    outbox.discard_client(b"client")
    outbox.flush(2.0)
    assert outbox.deadline is None, "the loop would wake for it without end"
