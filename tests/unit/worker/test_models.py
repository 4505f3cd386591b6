"""The core with several models: loading before requests are parsed, and reports of loaded models."""

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
    """Return the sent messages of a kind, in order."""
    return [message for _, message, _ in bench.sent if isinstance(message, kind)]


def test_ready_lists_all_models_and_the_loaded_ones(bench):
    ready = sent(bench, Ready)[0]
    assert ready.models == ["m", "other", "third"]
    assert ready.warm == ["m"]


def test_the_first_model_is_the_default(bench):
    bench.work(1)
    bench.work(2, model="m")
    assert [job.request.model for job in bench.all_jobs] == ["m", "m"]
    assert bench.loads == []


def test_a_request_waits_until_the_capabilities_of_its_model_are_known(bench):
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
    assert bench.loads == ["other", "other"], "the capabilities stay known after an eviction"
    assert len(bench.all_jobs) == 4


def test_a_request_is_rejected_once_its_model_is_loaded_and_does_not_support_it(bench):
    bench.work(1, model="other", body={"width": 72})
    bench.event(ev.ModelLoaded(OTHER, ("m", "other")))
    assert sent(bench, Error)[-1].code == "invalid_request"
    assert "multiples of 16" in sent(bench, Error)[-1].message


def test_an_invalid_request_loads_no_model(bench):
    bench.work(1, model="other", body={"width": -1})
    assert sent(bench, Error)[-1].code == "invalid_request"
    bench.work(2, model="unknown")
    assert sent(bench, Error)[-1].code == "model_not_found"
    assert "it serves m, other, third" in sent(bench, Error)[-1].message
    assert bench.loads == []


def test_a_model_that_cannot_be_loaded_fails_only_its_own_requests(bench):
    bench.work(1, model="other")
    bench.work(2, model="m")
    bench.work(3, model="third")
    bench.event(ev.ModelLoadFailed("other", "the model other can't be loaded: no such file", ("m",)))
    (error,) = sent(bench, Error)
    assert (error.request_id, error.code) == (rid(1), "generation_failed")
    assert error.message == "the model other can't be loaded: no such file"
    assert list(bench.core.held.queued) == [rid(2), rid(3)]
    bench.work(4, model="other")
    assert bench.loads[-1] == "other", "a new request loads the model again"


def test_jobs_of_a_model_that_cannot_be_loaded_again_are_cancelled(bench):
    bench.event(ev.ModelLoaded(OTHER, ("other",)))
    bench.work(1, model="other")
    bench.event(ev.ModelLoadFailed("other", "gone", ()))
    assert sent(bench, Error)[-1].message == "gone"
    assert bench.cancelled == [bench.all_jobs[-1].number], "the core cancels the job at the engine"


def test_a_drain_returns_requests_that_wait_for_their_model(bench):
    bench.work(1, model="other")
    bench.event(ev.DrainRequested("test"))
    assert sent(bench, Error)[-1].code == "returned"
    bench.event(ev.ModelLoaded(OTHER, ("m", "other")))
    assert bench.jobs == {}


def test_loading_a_model_does_not_count_as_a_hang(bench):
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


def reported_capabilities(bench):
    """Return the capabilities in each READY."""
    return [decode_capabilities(frames[0]) for _, message, frames in bench.sent if isinstance(message, Ready)]


def test_ready_contains_the_capabilities_of_the_loaded_models(bench):
    capabilities = reported_capabilities(bench)[0]
    assert list(capabilities) == ["m"]
    assert (capabilities["m"].width, capabilities["m"].size_multiple, capabilities["m"].max_side) == (64, 8, 512)
    assert capabilities["m"].tasks == {"text-to-image": None, "image-to-image": 0.5}
    assert capabilities["m"].loras is None


def test_the_capabilities_of_a_newly_loaded_model_are_reported_once(bench):
    bench.sent.clear()
    bench.event(ev.ModelLoading("other", ("m", "other")))
    bench.event(ev.ModelLoaded(OTHER, ("other",)))
    [capabilities] = reported_capabilities(bench)
    assert {name: capabilities[name].num_inference_steps for name in capabilities} == {"other": 9}
    bench.sent.clear()
    bench.event(ev.ModelLoaded(MODEL, ("m",)))
    bench.event(ev.ModelLoaded(OTHER, ("other",)))
    bench.beats(3.0)
    assert reported_capabilities(bench) == [], "these capabilities were reported before"


def test_a_draining_worker_sends_no_ready(bench):
    bench.work(1, model="other")
    bench.event(ev.DrainRequested("test"))
    bench.sent.clear()
    bench.event(ev.ModelLoaded(OTHER, ("other",)))
    assert reported_capabilities(bench) == []


def test_capabilities_contain_loras_and_schedulers():
    able = replace(MODEL, takes_loras=True, loras=("ink",), schedulers=("A", "B"))
    assert (able.capabilities().loras, able.capabilities().schedulers) == (["ink"], ["A", "B"])
