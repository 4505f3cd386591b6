"""Requests with input images: decoding before the engine, and the end of a request meanwhile."""

import pytest

from imagegen_protocol.messages import Progress, Result
from imagegen_worker.core import events as ev
from tests.unit.worker.bench import MODEL, Bench, rid

IMAGE = {"inputs": ["image"], "strength": 0.5}


def test_input_images_are_decoded_before_the_job_is_sent_to_the_engine():
    bench = Bench()
    bench.now += 1.0
    arrived = bench.now
    bench.work(1, b"picture", body=IMAGE, preview=True)
    (decode,) = bench.decoding.values()
    assert (decode.frames, decode.model, decode.request.inputs) == ((b"picture",), MODEL, ["image"])
    assert bench.jobs == {}
    assert bench.states() == ([rid(1)], [], []), "heartbeats list it as queued"
    bench.advance(0.5)
    bench.decoded_job(decode.number)
    (job,) = bench.jobs.values()
    assert (job.number, job.arrived, job.preview) == (decode.number, arrived, True)
    assert (job.request.task, job.request.strength) == ("image-to-image", 0.5)
    bench.start(1)
    bench.finish(1)
    (result,) = bench.messages(Result)
    assert result.parameters["task"] == "image-to-image"
    assert bench.messages(Progress)[0].steps == 4


def test_an_invalid_image_fails_the_request():
    bench = Bench()
    bench.work(1, b"text", body=IMAGE)
    bench.fail(1, "invalid_request", "image: expected a PNG, JPEG or WebP image")
    (error,) = bench.answers(1)
    assert (error.code, bench.states()[2]) == ("invalid_request", [rid(1)])


@pytest.mark.parametrize("way", ["release", "deadline", "drain"])
def test_a_request_that_ends_during_decoding_is_not_sent_to_the_engine(way):
    bench = Bench()
    bench.work(1, b"picture", body=IMAGE, timeout_seconds=1.0)
    number = bench.number(1)
    match way:
        case "release":
            bench.release(1)
        case "deadline":
            bench.beats(2.0)
            assert [error.code for error in bench.answers(1)] == ["deadline_exceeded"]
        case "drain":
            bench.drain()
            assert [error.code for error in bench.answers(1)] == ["returned"]
    assert bench.cancelled == [number]
    before = len(bench.sent)
    bench.decoded_job(number)  # the decoder had finished before the cancel
    assert bench.jobs == {}
    assert len(bench.sent) == before


def test_a_repeated_decoded_event_has_no_effect():
    bench = Bench()
    bench.work(1, b"picture", body=IMAGE)
    number = bench.number(1)
    bench.decoded_job(number)
    bench.event(ev.Decoded(number, bench.all_jobs[0].request))
    assert len(bench.all_jobs) == 1
