"""A client whose connection accepts no message: its requests wait, because another broker may have them too.

It has left while its SUBMIT was on the way to this broker, which was restarted meanwhile.
"""

from imagegen_broker.core.events import FLUSH, SendFailed, SendToClient
from imagegen_protocol.messages import ClientHeartbeat
from tests.unit.broker.bench import Bench, rid


class OneWay(Bench):
    """A bench on which the connection of client "gone" accepts nothing while it is closed."""

    closed = True

    def settle(self):
        for action in self.core.handle(FLUSH, self.now):
            if self.closed and isinstance(action, SendToClient) and action.client_id == b"gone":
                self.core.handle(SendFailed(action), self.now)
            else:
                self.perform(action)
        self.check()


def test_a_restarted_broker_dispatches_nothing_for_a_client_that_has_left_it():
    bench = OneWay()
    bench.ready("w")
    bench.submit(1, client="gone")
    bench.advance(bench.core.settings.grace + 0.5)
    assert bench.works("w") == []
    bench.advance(2 * bench.core.settings.silence)
    assert bench.works("w") == []
    assert not bench.core.table.requests


def test_nothing_is_dispatched_for_a_client_that_has_never_accepted_a_message():
    bench = OneWay().past_grace()
    bench.ready("w")
    bench.submit(1, client="gone")
    bench.advance(1.5)
    assert bench.works("w") == []


def test_its_requests_are_dispatched_once_its_connection_accepts_messages():
    bench = OneWay().past_grace()
    bench.ready("w")
    bench.submit(1, client="gone")
    bench.closed = False
    bench.advance(1.5)
    bench.client("gone", ClientHeartbeat())
    bench.advance(1.5)
    assert bench.works("w") == [rid(1)]


def test_a_connection_that_breaks_later_stops_the_dispatch_of_the_requests_that_still_wait():
    bench = OneWay().past_grace()
    bench.closed = False
    bench.ready("w", capacity=1)
    for number in (1, 2, 3):
        bench.submit(number, client="gone")
    bench.advance(1.1)
    assert bench.works("w") == [rid(1)]
    bench.closed = True
    for request_id in (rid(1), rid(2)):  # the broker dispatches the second before it knows
        bench.result("w", request_id)
        bench.beat("w", finished=[request_id])
    bench.advance(1.1)
    assert rid(3) not in bench.works("w")


def test_other_clients_are_served_meanwhile():
    bench = OneWay().past_grace()
    bench.ready("w", capacity=1)
    bench.submit(1, client="gone")
    bench.submit(2, client="here")
    bench.advance(0.5)
    assert bench.works("w") == [rid(2)]
