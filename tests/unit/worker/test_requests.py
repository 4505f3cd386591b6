"""WORK, RESEND, RELEASE, deadlines, orphaned requests, and limits of held requests."""

import pytest

from imagegen_protocol import encode_request
from imagegen_protocol.limits import MAX_FRAME_BYTES, MAX_IDS_PER_MESSAGE, MAX_WARNING_LENGTH, MAX_WARNINGS
from imagegen_protocol.messages import Error, Progress, Result, Work, WorkerHeartbeat
from imagegen_protocol.request import make_request
from imagegen_worker.core import events as ev
from imagegen_worker.core.broker_session import COALESCE_SECONDS
from imagegen_worker.core.held_requests import ANSWER_OVERHEAD_BYTES
from tests.unit.worker.bench import Bench, rid

BODY = encode_request(make_request(prompt="p", seed=1))
WITH_IMAGE = encode_request(make_request(prompt="p", seed=1, inputs=["image"]))
WITH_MASK = encode_request(make_request(prompt="p", seed=1, inputs=["image", "mask_image"]))


def test_the_states_of_a_request_from_work_to_release():
    bench = Bench()
    one = bench.work(1, attempt=2)
    assert bench.states() == ([one], [], [])
    bench.sent.clear()
    bench.start(1)
    assert bench.states() == ([], [one], [])
    assert [beat.running for beat in bench.messages(WorkerHeartbeat)] == [[one]], "reported when the batch starts"
    bench.sent.clear()
    bench.finish(1, b"png")
    images = bench.sent[0][2]
    assert bench.messages(WorkerHeartbeat) == []
    bench.advance(COALESCE_SECONDS)
    result, beat = (message for _, message, _ in bench.sent)
    assert isinstance(result, Result)
    assert (result.request_id, result.attempt, result.worker, result.model) == (one, 2, "worker", "m")
    assert result.parameters["num_inference_steps"] == 4
    assert images == (b"png",)
    assert beat.finished == [one], "reported soon after the batch, together with other changes"
    assert beat.stats.total_requests == 1
    bench.release(1)
    assert bench.states() == ([], [], [])
    assert bench.cancelled == []


def test_the_end_of_a_batch_sends_no_earlier_ready_to_an_unregistered_broker():
    bench = Bench(registered=False)
    due = bench.core.next_deadline()
    bench.work(1)
    bench.start(1)
    bench.sent.clear()
    bench.finish(1)
    assert bench.sent == []
    assert bench.core.next_deadline() == due, "READY is not sent earlier"


@pytest.mark.parametrize("state", ["queued", "running", "finished"])
def test_a_second_work_creates_no_second_job_and_counts_as_resend(state):
    bench = Bench(brokers=2)
    bench.work(1)
    if state != "queued":
        bench.start(1)
    if state == "finished":
        bench.finish(1)
    bench.sent.clear()
    bench.work(1, broker=1, attempt=3)
    if state != "finished":
        assert bench.answers(1, 1) == []
        bench.finish(1)
    assert [answer.attempt for answer in bench.answers(1, 1)] == [3]
    assert bench.answers(1, 0) == []
    assert len(bench.all_jobs) == 1


def test_resend_sends_the_answer_or_changes_the_broker_that_will_receive_it():
    bench = Bench(brokers=2)
    bench.work(1)
    bench.resend(1, 77, broker=1)
    assert bench.answers(1, 1) == []
    bench.start(1)
    bench.finish(1)
    assert (len(bench.answers(1, 0)), len(bench.answers(1, 1))) == (0, 1)
    bench.resend(1, broker=0)
    bench.resend(1, broker=0)
    assert (len(bench.answers(1, 0)), len(bench.answers(1, 1))) == (2, 1)
    assert bench.sent[-1][2] == (b"image",)


@pytest.mark.parametrize("state", ["queued", "running", "finished"])
def test_release_removes_a_request_in_any_state(state):
    bench = Bench()
    bench.work(1)
    number = bench.number(1)
    if state != "queued":
        bench.start(1)
    if state == "finished":
        bench.finish(1)
    bench.release(1, 55)
    assert bench.states() == ([], [], [])
    assert bench.cancelled == ([] if state == "finished" else [number])
    bench.finish_job(number)  # its event was already in transit from the engine
    assert bench.states() == ([], [], [])


def test_a_release_of_another_broker_has_no_effect_while_the_owner_is_alive():
    bench = Bench(brokers=2)
    bench.work(1, broker=0)
    bench.release(1, broker=1)
    assert bench.states()[0] == [rid(1)]
    bench.beats(5.0, broker=1)  # broker 0 is silent
    bench.release(1, broker=1)
    assert bench.states() == ([], [], [])


@pytest.mark.parametrize("claims_again", [False, True])
def test_a_release_of_another_broker_frees_what_a_restarted_broker_has_not_claimed_again(claims_again):
    bench = Bench(brokers=2)
    bench.work(1, broker=0)
    for _ in range(2):  # the worker sends READY after the first one, and is registered by the second one
        bench.beat(broker=0, session=2, epoch=b"r" * 16)
    if claims_again:
        bench.resend(1, broker=0)
    bench.release(1, broker=1)
    assert bench.states()[0] == ([rid(1)] if claims_again else [])


def test_a_repeated_id_after_a_release_is_a_new_job():
    bench = Bench()
    bench.work(1)
    first = bench.number(1)
    bench.release(1)
    bench.work(1)
    bench.event(ev.Started((first,)))
    bench.event(ev.Stepped((first,), 1, 4))
    bench.finish_job(first)
    assert bench.states()[0] == [rid(1)]
    assert bench.answers(1) == []


def test_progress_is_sent_only_if_requested():
    bench = Bench()
    bench.work(1, progress=True)
    bench.work(2)
    bench.start(1, 2)
    bench.step(1, 1)
    bench.step(2, 1)
    reported = [(m.request_id, m.step, m.steps) for m in bench.messages(Progress)]
    assert reported == [(rid(1), 0, 4), (rid(1), 1, 4)]


@pytest.mark.parametrize(
    ("frames", "fields", "code", "words"),
    [
        ((), {}, "invalid_request", "body frame is missing"),
        ((b"\xc1",), {}, "invalid_request", "not msgpack"),
        ((BODY, b"png"), {}, "invalid_request", "inputs: expected 0 image frames after the body, got 1"),
        ((WITH_IMAGE,), {}, "invalid_request", "inputs: expected 1 image frames (image) after the body, got 0"),
        (
            (WITH_MASK, b"png", b"png"),
            {},
            "invalid_request",
            "inputs: the model m supports text-to-image",
        ),
        ((b"\x82\xa6prompt\xa1p\xa4seed\x01",), {"model": "other"}, "model_not_found", "serves m"),
        ((b"\x83\xa6prompt\xa1p\xa4seed\x01\xa5width\xcd\x04\x00",), {}, "invalid_request", "512"),
    ],
)
def test_an_invalid_request_is_answered_at_once(frames, fields, code, words):
    bench = Bench()
    bench.receive(Work(request_id=rid(1), **fields), *frames)
    (error,) = bench.answers(1)
    assert error.code == code
    assert words in error.message
    assert bench.jobs == {}
    assert bench.states()[2] == [rid(1)], "the error is kept until RELEASE"


@pytest.mark.parametrize("running", [False, True])
def test_a_request_expires_while_queued_and_while_running(running):
    bench = Bench()
    bench.work(1, timeout_seconds=1.5)
    number = bench.number(1)
    if running:
        bench.start(1)
    bench.beats(1.0)
    assert bench.answers(1) == []
    bench.advance(0.6)
    (error,) = bench.answers(1)
    assert error.code == "deadline_exceeded"
    assert bench.cancelled == [number]
    assert bench.states() == ([], [], [rid(1)])
    bench.finish_job(number)
    assert len(bench.answers(1)) == 1


def test_a_second_work_sets_a_new_deadline():
    bench = Bench()
    bench.work(1, timeout_seconds=1.0)
    bench.work(1, timeout_seconds=5.0)
    bench.beats(4.0)
    assert bench.answers(1) == []
    bench.beats(1.0)
    assert [error.code for error in bench.answers(1)] == ["deadline_exceeded"]


def test_queued_requests_of_a_silent_broker_are_dropped_and_running_ones_are_not():
    bench = Bench()
    bench.work(1)
    queued = bench.work(2)
    bench.start(1)
    bench.advance(62.0)
    assert bench.states() == ([queued], [rid(1)], [])
    bench.advance(2.0)
    assert bench.states() == ([], [rid(1)], [])
    assert bench.warnings() == ["broker lost", "orphaned request dropped"]


def test_a_queued_request_whose_broker_returns_is_not_dropped():
    bench = Bench()
    bench.work(1)
    bench.advance(50.0)
    bench.beat(session=5)
    bench.beats(100.0)
    assert bench.states()[0] == [] or bench.states()[0] == [rid(1)]
    assert "orphaned request dropped" not in bench.warnings()


def test_the_bytes_of_answers_are_limited_and_the_oldest_are_dropped():
    size = ANSWER_OVERHEAD_BYTES + 100
    bench = Bench(bytes=2 * size)
    for number in range(1, 4):
        bench.work(number)
        bench.start(number)
        bench.finish(number, bytes(100))
    assert bench.states()[2] == [rid(2), rid(3)]
    assert bench.warnings() == ["answer dropped"]
    bench.work(4)
    bench.start(4)
    bench.finish(4, bytes(100_000))
    assert bench.states()[2] == [rid(4)], "the newest answer is always kept"


def test_the_number_of_answers_is_limited():
    bench = Bench(count=3)
    for number in range(1, 6):
        bench.work(number)
        bench.start(number)
        bench.finish(number)
    assert bench.states()[2] == [rid(3), rid(4), rid(5)]


def test_the_age_of_answers_is_limited():
    bench = Bench(seconds=10.0)
    bench.work(1)
    bench.start(1)
    bench.finish(1)
    bench.beats(9.0)
    assert bench.states()[2] == [rid(1)]
    bench.beats(1.0)
    assert bench.states()[2] == []
    bench.work(1)
    assert len(bench.jobs) == 1, "a repeated request is generated again"


def test_requests_beyond_the_ids_of_a_heartbeat_are_returned():
    bench = Bench()
    for number in range(MAX_IDS_PER_MESSAGE + 1):
        bench.work(number)
    assert len(bench.states()[0]) == MAX_IDS_PER_MESSAGE
    assert [(m.request_id, m.code) for m in bench.messages(Error)] == [(rid(MAX_IDS_PER_MESSAGE), "returned")]
    bench.advance(1.0)  # the harness checks the size of the header


def test_running_requests_count_towards_the_ids_of_a_heartbeat():
    bench = Bench()
    for number in range(MAX_IDS_PER_MESSAGE):
        bench.work(number)
    bench.start(*range(MAX_IDS_PER_MESSAGE))
    bench.work(MAX_IDS_PER_MESSAGE)
    assert [error.code for error in bench.answers(MAX_IDS_PER_MESSAGE)] == ["returned"]


def test_work_before_the_model_is_loaded_is_returned():
    bench = Bench(warm=False)
    bench.work(1)
    assert [error.code for error in bench.answers(1)] == ["returned"]


@pytest.mark.parametrize("message", ["x" * 100_000, "half a pair \ud83d", "\U0001f600" * 5000])
def test_any_error_text_of_a_pipeline_is_made_sendable(message):
    bench = Bench()
    bench.work(1)
    bench.start(1)
    bench.fail(1, message=message)  # the harness encodes each sent message
    (error,) = bench.answers(1)
    assert error.code == "generation_failed"
    assert 0 < len(error.message) <= 2000


def test_an_image_larger_than_a_frame_is_an_error():
    class Long(bytes):
        def __len__(self):
            return MAX_FRAME_BYTES + 1

    bench = Bench()
    bench.work(1)
    bench.start(1)
    bench.finish(1, Long())
    (error,) = bench.answers(1)
    assert error.code == "generation_failed"
    assert str(MAX_FRAME_BYTES) in error.message


def test_heartbeats_report_the_step_age_while_a_batch_runs():
    bench = Bench()
    bench.work(1)
    bench.start(1)
    bench.beats(2.0)
    assert bench.messages(WorkerHeartbeat)[-1].step_age_seconds == pytest.approx(2.0)
    bench.step(1, 1)
    bench.advance(1.0)
    assert bench.messages(WorkerHeartbeat)[-1].step_age_seconds == pytest.approx(1.0)
    bench.finish(1)
    bench.event(ev.Idle())
    bench.advance(1.0)
    assert bench.messages(WorkerHeartbeat)[-1].step_age_seconds is None


def test_heartbeats_report_totals_and_speed():
    bench = Bench()
    bench.event(ev.CallDone(requests=2, images=3, steps=4, seconds=1.5, seconds_per_image=0.4))
    bench.event(ev.CallFailed(3, 0.5, split=True))
    bench.advance(1.0)
    beat = bench.messages(WorkerHeartbeat)[-1]
    assert beat.seconds_per_image == 0.4
    assert (beat.stats.total_batches, beat.stats.total_batched_requests, beat.stats.total_images) == (1, 2, 3)
    assert beat.stats.busy_seconds == 2.0


@pytest.mark.parametrize(("announced", "requested"), [(1, 2), (3, 2)])
def test_a_body_with_another_number_of_images_than_the_header_is_rejected(announced, requested):
    bench = Bench()
    bench.work(1, body={"num_images": requested}, images=announced)
    (error,) = bench.messages(Error)
    assert error.code == "invalid_request"
    assert error.message == f"num_images: expected {announced} as the request's header states, got {requested}"


@pytest.mark.parametrize("announced", [2, None])
def test_a_header_with_the_same_number_of_images_or_none_is_accepted(announced):
    bench = Bench()
    request_id = bench.work(1, body={"num_images": 2}, images=announced)
    assert bench.states() == ([request_id], [], [])


def test_the_warnings_of_a_result_are_limited_in_number_and_length():
    bench = Bench()
    bench.work(1)
    bench.start(1)
    bench.sent.clear()
    bench.finish(1, warnings=("short", *(MAX_WARNINGS + 1) * ("x" * 10_000,)))
    (result,) = bench.messages(Result)
    assert result.warnings == ["short", *(MAX_WARNINGS - 1) * ("x" * MAX_WARNING_LENGTH,)]
