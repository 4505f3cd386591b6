"""The step timeout: a worker whose device hangs logs the reason and exits."""

import logging

import pytest

from imagegen_protocol.messages import BrokerHeartbeat, Goodbye, Work
from imagegen_protocol.request import GenerationRequest, encode_request
from imagegen_worker.core import events as ev
from imagegen_worker.core.state import WorkerLimits
from imagegen_worker.core.worker import DEVICE_HUNG_STATUS, WorkerCore
from tests.unit.worker.bench import IDENTITY, MODEL, rid


class HangingWorker:
    """A worker with a loaded model and a request that started at second 10."""

    def __init__(self, step_timeout):
        self.core = WorkerCore(IDENTITY, brokers=1, limits=WorkerLimits(step_timeout=step_timeout), now=0.0)
        self.core.handle(ev.EngineReady((MODEL,), "cpu", None), 0.0)
        self.beat(0.0, 1)
        body = encode_request(GenerationRequest(prompt="p", seed=1))
        actions = self.core.handle(ev.Received(0, Work(request_id=rid(1)), (body,)), 9.0)
        (self.job,) = [action for action in actions if isinstance(action, ev.Job)]
        self.core.handle(ev.Started((self.job.number,)), 10.0)

    def beat(self, now, beat):
        heartbeat = BrokerHeartbeat(epoch=b"e" * 16, session=1, beat=beat, interval_seconds=1.0, liveness=3)
        self.core.handle(ev.Received(0, heartbeat), now)

    def until(self, end):
        """Tick at each deadline, with a broker heartbeat each second; return the last actions and their time."""
        now, actions = 10.0, []
        while now < end:
            self.beat(now, 2)
            deadline = self.core.next_deadline()
            if deadline is None:
                return actions, now
            now = min(max(deadline, now), now + 1.0, end)
            actions = self.core.handle(ev.Tick(), now)
        return actions, now


def test_the_process_logs_the_hang_and_exits_at_the_step_timeout():
    hanging = HangingWorker(5.0)
    actions, now = hanging.until(60.0)
    assert now == 15.0
    line, leave = actions
    assert isinstance(line, ev.LogEvent)
    assert line.level == logging.CRITICAL
    assert line.text == "device hung"
    assert line.fields == {"step_age_seconds": 5.0, "running": rid(1).hex()}
    assert leave == ev.Exit(DEVICE_HUNG_STATUS)


def test_no_goodbye_is_sent_so_that_the_broker_counts_a_death():
    actions, _ = HangingWorker(5.0).until(60.0)
    assert not [
        action for action in actions if isinstance(action, ev.Send) and isinstance(action.message, Goodbye)
    ]


def test_each_step_restarts_the_timeout_and_an_idle_device_never_hangs():
    hanging = HangingWorker(5.0)
    hanging.core.handle(ev.Stepped((hanging.job.number,), 1, 4), 14.0)
    actions, now = hanging.until(18.9)
    assert not [action for action in actions if isinstance(action, ev.Exit)]
    hanging.core.handle(ev.Idle(), 18.9)
    actions, now = hanging.until(100.0)
    assert now == 100.0
    assert not [action for action in actions if isinstance(action, ev.Exit)]


def test_a_hang_in_a_job_that_has_already_failed_is_detected():
    hanging = HangingWorker(5.0)
    hanging.core.handle(ev.Failed(hanging.job.number, "generation_failed", "m"), 11.0)
    actions, now = hanging.until(60.0)
    assert now == 15.0
    assert actions[-1] == ev.Exit(DEVICE_HUNG_STATUS)


@pytest.mark.parametrize("limit", [None, 0])
def test_the_timeout_can_be_disabled(limit):
    actions, now = HangingWorker(limit).until(1000.0)
    assert now == 1000.0
    assert not [action for action in actions if isinstance(action, ev.Exit)]
