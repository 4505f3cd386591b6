"""A client whose connection takes nothing: nothing grows for it, nobody waits for it, and it misses nothing."""

from imagegen_broker.core.events import FLUSH, SendFailed, SendToClient
from imagegen_protocol.messages import Ack, ClientHeartbeat, Error, Resend, Result
from tests.unit.broker.bench import Bench, rid


class Narrow(Bench):
    """A bench on which the connection of client "slow" takes `room` answers."""

    room = 0

    def flush(self):
        for action in self.core.handle(FLUSH, self.now):
            if isinstance(action, SendToClient) and action.client_id == b"slow":
                is_answer = isinstance(action.message, bytes | Error)
                if is_answer and not self.room:
                    self.core.handle(SendFailed(action), self.now)
                    continue
                self.room -= is_answer
            self.perform(action)


def narrow(requests, capacity=100):
    bench = Narrow().past_grace()
    bench.ready("w", capacity=capacity)
    for number in range(requests):
        bench.submit(number, client="slow")
    for number in range(requests):
        bench.result("w", rid(number))
    return bench


def test_answers_that_were_not_taken_stay_with_the_worker_and_are_asked_for_when_the_client_is_heard():
    bench = narrow(3)
    assert bench.results("slow") == []
    bench.room = 10
    bench.client("slow", ClientHeartbeat())
    assert bench.ids(Resend, "w") == [rid(0), rid(1), rid(2)]
    for number in range(3):
        bench.result("w", rid(number))
    assert bench.results("slow") == [rid(0), rid(1), rid(2)]


def test_while_it_is_not_heard_nothing_is_tried():
    bench = narrow(3)
    bench.clear()
    dropped = bench.core.table.counters.dropped
    bench.advance(2.5)
    assert bench.ids(Resend, "w") == []
    assert bench.core.table.counters.dropped == dropped
    bench.submit(9, client="quick")
    bench.result("w", rid(9))
    assert bench.results("quick") == [rid(9)]


def test_a_few_are_tried_each_interval_and_one_more_for_each_acknowledgement():
    bench = narrow(40)
    bench.room = 100
    bench.client("slow", ClientHeartbeat())
    bench.client("slow", ClientHeartbeat())
    assert bench.ids(Resend, "w") == [rid(number) for number in range(8)]
    bench.result("w", rid(0))
    bench.ack(0, client="slow")
    assert bench.ids(Resend, "w") == [rid(number) for number in range(9)]
    bench.advance(1.0)
    bench.beat("w", finished=[rid(number) for number in range(1, 40)])
    bench.client("slow", ClientHeartbeat())
    assert len(set(bench.ids(Resend, "w"))) == 17


def test_an_error_of_the_brokers_own_is_kept_for_it_too():
    bench = Narrow().past_grace()
    bench.submit(1, client="slow")
    bench.cancel(1, client="slow")
    assert bench.errors("slow") == []
    bench.room = 1
    bench.advance(1.0)
    bench.client("slow", ClientHeartbeat())
    assert bench.errors("slow") == [(rid(1), "cancelled")]


def test_what_it_missed_is_forgotten_with_it():
    bench = narrow(3)
    bench.client("slow", Ack(request_ids=[rid(0)]))
    (client,) = bench.core.clients.by_id.values()
    assert rid(0) not in client.missed
    bench.advance(10.0)
    assert not bench.core.clients.by_id
    assert not bench.core.table.requests
    assert not [m for _, _, m, _ in bench.sent if isinstance(m, Result)]
