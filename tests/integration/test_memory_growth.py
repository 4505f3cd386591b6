"""Objects are counted: what has served for long holds no more of them than what has just warmed up."""

import gc
import logging
import os
import types
from itertools import pairwise

import pytest

from imagegen_worker.backends.diffusers.pipeline_batcher import PipelineBatcher
from imagegen_worker.engines.continuous import ContinuousEngine
from tests.families import FAMILIES
from tests.integration.continuous.helpers import PROMPTS, Backend, Script, job, one_thread
from tests.raw import Peers, ready, result, submit

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
__all__ = ["one_thread"]

LOOKS = (3, 7, 11, 15)
"""Rounds after which the objects are counted."""
TOLERANCE = 20
"""Objects that may be more after dozens of requests, from one look to the next: the interpreter's own caches."""


@pytest.fixture(autouse=True)
def no_log():
    """Records of the log are objects, too, and pytest keeps them."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def count():
    """The objects that the collector knows, once it has collected."""
    gc.collect()
    return len(gc.get_objects())


def assert_flat(counted):
    """What leaks grows each time; what other tests have left may come and go in between."""
    assert len(counted) == len(LOOKS)
    assert min(after - before for before, after in pairwise(counted)) <= TOLERANCE, counted


@pytest.mark.parametrize("shares_calls", [True, False], ids=["calls shared", "calls apart"])
@pytest.mark.parametrize("name", ["sd", "flux"])
def test_an_engine_keeps_nothing_of_what_it_has_made(name, shares_calls):
    family = FAMILIES[name]()
    counted, made = [], []

    def rounds():
        for number in range(LOOKS[-1] + 1):
            for place in range(8):
                yield job(
                    8 * number + place, seeds=(number, place), steps=1 + place % 3, prompt=PROMPTS[place % 4]
                )
            yield from [None] * 48  # forwards: all of them have been made by then
            mailbox.posted.clear()
            if number in LOOKS:
                counted.append(count())

    mailbox = Script(rounds())
    batcher = PipelineBatcher(family.pipeline)
    encoder = types.SimpleNamespace(submit=lambda raw: made.append(raw.number))
    ContinuousEngine(Backend(batcher, family.arguments, shares_calls), encoder, max_batch_size=8).run(mailbox)
    mailbox.close()
    batcher.close()
    assert sorted(made) == list(range(8 * (LOOKS[-1] + 1)))
    assert_flat(counted)


@pytest.fixture
def dial():
    peers = Peers()
    yield peers
    peers.close()


def test_a_broker_keeps_nothing_of_what_it_has_passed_on(start_broker, dial):
    broker = start_broker(liveness=1000)
    client, worker = dial(broker.frontend_endpoint), dial(broker.backend_endpoint)
    ready(worker)
    counted = []
    for number in range(LOOKS[-1] + 1):
        for _ in range(16):
            request_id = os.urandom(16)
            submit(client, request_id)
            assert worker.receive("work")[0]["request_id"] == request_id
            result(worker, request_id, b"image")
            assert client.receive("result")[0]["request_id"] == request_id
            client.send({"type": "ack", "request_ids": [request_id]})
            assert worker.receive("release")[0]["request_ids"] == [request_id]
        if number in LOOKS:
            broker.snapshot(60)  # the loop is back in its poll, or nearly
            counted.append(count())
    assert_flat(counted)
