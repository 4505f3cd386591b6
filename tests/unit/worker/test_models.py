"""The core with several models: what is not known is loaded first, and heartbeats tell what is warm."""

from dataclasses import replace

import pytest

from imagegen_protocol.capabilities import decode_capabilities
from imagegen_protocol.messages import Error, Ready, WorkerHeartbeat
from imagegen_worker.core import events as ev
from tests.unit.worker.bench import MODEL, Bench, rid

OTHER = replace(MODEL, name="other", num_inference_steps=9, size_multiple=16)


@pytest.fixture
def bench():
    bench = Bench(warm=False)
    bench.event(ev.EngineReady((MODEL,), "cpu", 0.5, served=("m", "other", "third")))
    bench.beat()
    return bench


def sent(bench, kind):
    """All messages of a kind, in order."""
    return [message for _, message, _ in bench.sent if isinstance(message, kind)]


def test_ready_names_all_and_tells_which_are_warm(bench):
    ready = sent(bench, Ready)[0]
    assert ready.models == ["m", "other", "third"]
    assert ready.warm == ["m"]


def test_the_first_is_the_default(bench):
    bench.work(1)
    bench.work(2, model="m")
    assert [job.request.model for job in bench.all_jobs] == ["m", "m"]
    assert bench.loads == []


def test_a_request_waits_until_its_model_is_known(bench):
    bench.work(1, model="other")
    bench.work(2, model="other", body={"num_inference_steps": 5})
    assert bench.loads == ["other", "other"]
    assert bench.jobs == {}
    assert list(bench.core.held.queued) == [rid(1), rid(2)]
    bench.event(ev.ModelLoading("other", ("m", "other")))
    assert sent(bench, WorkerHeartbeat)[-1].warm == ["m", "other"]
    bench.event(ev.ModelLoaded(OTHER, ("other",)))
    assert sent(bench, WorkerHeartbeat)[-1].warm == ["other"]
    assert [job.request.num_inference_steps for job in bench.all_jobs] == [9, 5]
    bench.work(3, model="m")
    bench.work(4, model="other")
    assert bench.loads == ["other", "other"], "what was known once is known"
    assert len(bench.all_jobs) == 4


def test_what_its_model_can_not_make_is_told_once_that_is_known(bench):
    bench.work(1, model="other", body={"width": 72})
    bench.event(ev.ModelLoaded(OTHER, ("m", "other")))
    assert sent(bench, Error)[-1].code == "invalid_request"
    assert "multiples of 16" in sent(bench, Error)[-1].message


def test_a_body_that_is_none_loads_nothing(bench):
    bench.work(1, model="other", body={"width": -1})
    assert sent(bench, Error)[-1].code == "invalid_request"
    bench.work(2, model="nobody's")
    assert sent(bench, Error)[-1].code == "model_not_found"
    assert "it serves m, other, third" in sent(bench, Error)[-1].message
    assert bench.loads == []


def test_a_model_that_can_not_be_loaded_fails_its_requests_alone(bench):
    bench.work(1, model="other")
    bench.work(2, model="m")
    bench.work(3, model="third")
    bench.event(ev.ModelLoadFailed("other", "the model other can't be loaded: no such file", ("m",)))
    (error,) = sent(bench, Error)
    assert (error.request_id, error.code) == (rid(1), "generation_failed")
    assert error.message == "the model other can't be loaded: no such file"
    assert list(bench.core.held.queued) == [rid(2), rid(3)]
    bench.work(4, model="other")
    assert bench.loads[-1] == "other", "it is tried again when it is asked for again"


def test_a_model_that_was_known_and_can_not_be_loaded_again(bench):
    bench.event(ev.ModelLoaded(OTHER, ("other",)))
    bench.work(1, model="other")
    bench.event(ev.ModelLoadFailed("other", "gone", ()))
    assert sent(bench, Error)[-1].message == "gone"
    assert bench.cancelled == [bench.all_jobs[-1].number], "the engine is told to forget it"


def test_what_waits_for_its_model_is_given_back_by_a_drain(bench):
    bench.work(1, model="other")
    bench.event(ev.DrainRequested("test"))
    assert sent(bench, Error)[-1].code == "returned"
    bench.event(ev.ModelLoaded(OTHER, ("m", "other")))
    assert bench.jobs == {}


def test_a_device_that_loads_does_not_hang(bench):
    bench.work(1)
    bench.event(ev.Started((1,)))
    bench.event(ev.ModelLoading("other", ("m", "other")))
    bench.beats(1000)
    assert bench.status is None
    assert sent(bench, WorkerHeartbeat)[-1].step_age_seconds is None
    bench.event(ev.ModelLoaded(OTHER, ("m", "other")))
    bench.beats(299)
    assert sent(bench, WorkerHeartbeat)[-1].step_age_seconds >= 298
    assert bench.status is None
    bench.beats(2)
    assert bench.status == 70


def told(bench):
    """The capabilities in each READY."""
    return [decode_capabilities(frames[0]) for _, message, frames in bench.sent if isinstance(message, Ready)]


def test_ready_tells_what_the_loaded_models_take(bench):
    capabilities = told(bench)[0]
    assert list(capabilities) == ["m"]
    assert (capabilities["m"].width, capabilities["m"].size_multiple, capabilities["m"].max_side) == (64, 8, 512)
    assert capabilities["m"].tasks == {"text-to-image": None, "image-to-image": 0.5}
    assert capabilities["m"].loras is None


def test_what_a_model_takes_is_told_once_it_is_known(bench):
    bench.sent.clear()
    bench.event(ev.ModelLoading("other", ("m", "other")))
    bench.event(ev.ModelLoaded(OTHER, ("other",)))
    [capabilities] = told(bench)
    assert {name: capabilities[name].num_inference_steps for name in capabilities} == {"other": 9}
    bench.sent.clear()
    bench.event(ev.ModelLoaded(MODEL, ("m",)))
    bench.event(ev.ModelLoaded(OTHER, ("other",)))
    bench.beats(3.0)
    assert told(bench) == [], "it is known already"


def test_a_worker_that_leaves_does_not_ask_to_be_registered(bench):
    bench.work(1, model="other")
    bench.event(ev.DrainRequested("test"))
    bench.sent.clear()
    bench.event(ev.ModelLoaded(OTHER, ("other",)))
    assert told(bench) == []


def test_a_model_tells_its_loras_and_schedulers():
    able = replace(MODEL, takes_loras=True, loras=("ink",), schedulers=("A", "B"))
    assert (able.capabilities().loras, able.capabilities().schedulers) == (["ink"], ["A", "B"])
