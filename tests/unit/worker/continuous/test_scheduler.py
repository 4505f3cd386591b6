"""Tasks share forwards, and a failure of one does not affect others."""

import gc
import itertools

import pytest
from greenlet import greenlet

from imagegen_worker.backends import DeviceLostError, DeviceMemoryError, StoppedError
from imagegen_worker.engines.continuous.calls import NotShareableError, current_task
from imagegen_worker.engines.continuous.limits import MemoryLimits, RowCosts
from imagegen_worker.engines.continuous.scheduler import BatchScheduler, ForwardDone, ForwardSplit
from imagegen_worker.engines.continuous.timing import WallTimer
from tests.unit.worker.continuous.models import ToyStage, alone, finish, pipeline


def test_calls_with_different_step_counts_share_forwards():
    stage, scheduler = ToyStage(), BatchScheduler()
    for start, steps in enumerate((2, 4, 3)):
        scheduler.start(pipeline(stage, start, steps), tag=start)
    ended = finish(scheduler)
    assert {tag: task.result for tag, task in ended.items()} == {0: alone(0, 2), 1: alone(1, 4), 2: alone(2, 3)}
    assert [rows for _, rows in stage.forwards] == [3, 3, 2, 1]


def test_a_request_joins_at_the_next_step_and_others_continue_when_it_ends():
    stage, scheduler = ToyStage(), BatchScheduler()
    scheduler.start(pipeline(stage, 1, 4), tag="first")
    scheduler.step()
    scheduler.start(pipeline(stage, 5, 2), tag="second")
    ended = finish(scheduler)
    assert [rows for _, rows in stage.forwards] == [1, 2, 2, 1]
    assert (ended["first"].result, ended["second"].result) == (alone(1, 4), alone(5, 2))
    assert (ended["first"].largest_batch, ended["second"].largest_batch) == (2, 2)


def test_calls_with_different_keys_never_share():
    stage, scheduler = ToyStage(), BatchScheduler()
    scheduler.start(pipeline(stage, 1, 3, key="small"), tag=1)
    scheduler.start(pipeline(stage, 2, 3, key="large"), tag=2)
    finish(scheduler)
    assert all(rows == 1 for _, rows in stage.forwards)


def test_calls_without_a_key_run_alone_with_a_reason():
    events = []
    stage, scheduler = ToyStage(), BatchScheduler(observe=events.append)
    for tag in range(2):
        scheduler.start(lambda: stage(1, key=None, reason="opaque argument"), tag=tag)
    assert {task.result[0] for task in finish(scheduler).values()} == {3}
    assert [event.fallback for event in events] == ["opaque argument"] * 2


def test_encoders_go_first_so_that_a_new_request_joins_the_running_batch():
    encoder, denoiser, scheduler = ToyStage("text", is_denoiser=False), ToyStage(), BatchScheduler()
    scheduler.start(pipeline(denoiser, 1, 3))
    scheduler.start(lambda: pipeline(denoiser, encoder(4)[0], 2)())
    finish(scheduler)
    assert [rows for _, rows in denoiser.forwards] == [2, 2, 1]


def test_requests_that_end_together_share_a_decode():
    denoiser, decoder, scheduler = ToyStage(), ToyStage("vae", is_denoiser=False), BatchScheduler()
    for start in range(3):
        scheduler.start(lambda start=start: decoder(pipeline(denoiser, start, 2)()))
    finish(scheduler)
    assert [rows for _, rows in decoder.forwards] == [3]


# ---- cancelling --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", range(4))
def test_cancelling_one_task_does_not_affect_others(after):
    stage, scheduler = ToyStage(), BatchScheduler()
    cleaned = []

    def unwanted():
        try:
            return pipeline(stage, 7, 4)()
        finally:
            cleaned.append(True)

    victim = scheduler.start(unwanted, tag="victim")
    scheduler.start(pipeline(stage, 1, 5), tag="other")
    for _ in range(after):
        scheduler.step()
    scheduler.cancel(victim)
    ended = finish(scheduler)
    assert cleaned
    assert isinstance(ended["victim"].error, StoppedError)
    assert ended["other"].result == alone(1, 5)
    assert sum(rows for _, rows in stage.forwards) == 5 + after


def test_cancelling_an_ended_task_does_nothing():
    stage, scheduler = ToyStage(), BatchScheduler()
    task = scheduler.start(pipeline(stage, 1, 1))
    finish(scheduler)
    scheduler.cancel(task)
    assert scheduler.ended() == []


def test_a_pipeline_that_catches_its_cancellation_is_ended():
    stage, scheduler = ToyStage(), BatchScheduler()

    def stubborn():
        while True:
            try:
                stage(1)
            except StoppedError:
                continue

    task = scheduler.start(stubborn)
    scheduler.cancel(task)
    assert len(scheduler) == 0
    assert scheduler.ended() == [task]
    assert isinstance(task.error, StoppedError)


def test_an_exception_of_a_callback_ends_its_request_only():
    stage, scheduler = ToyStage(), BatchScheduler()

    def on_step(step, steps):
        if step == 2:
            raise StoppedError

    scheduler.start(pipeline(stage, 1, 4, on_step=on_step), tag="stopped")
    scheduler.start(pipeline(stage, 2, 4), tag="other")
    ended = finish(scheduler)
    assert isinstance(ended["stopped"].error, StoppedError)
    assert ended["other"].result == alone(2, 4)


# ---- errors ------------------------------------------------------------------------------------------------


def test_an_error_in_a_shared_forward_fails_the_faulty_call_only():
    stage, scheduler = ToyStage(), BatchScheduler()
    stage.poison = {11}
    for start in (1, 5, 9):  # 5 becomes 11 after its first step
        scheduler.start(pipeline(stage, start, 3), tag=start)
    ended = finish(scheduler)
    assert isinstance(ended[5].error, ValueError)
    assert (ended[1].result, ended[9].result) == (alone(1, 3), alone(9, 3))
    assert max(rows for _, rows in stage.forwards[-1:]) == 2  # the others share on


def test_a_pipeline_may_handle_the_error_of_its_call():
    stage, scheduler = ToyStage(), BatchScheduler()
    stage.poison = {5}

    def careful():
        try:
            return stage(5)[0]
        except ValueError:
            return "handled"

    scheduler.start(careful, tag="careful")
    scheduler.start(pipeline(stage, 1, 2), tag="other")
    ended = finish(scheduler)
    assert ended["careful"].result == "handled"
    assert ended["other"].result == alone(1, 2)


@pytest.mark.parametrize(
    ("error", "reason"), [(NotShareableError("unequal"), "unequal"), (TypeError("shapes"), "error")]
)
def test_calls_that_fail_only_when_shared_run_alone_from_then_on(error, reason, caplog):
    events = []
    stage, scheduler = ToyStage(), BatchScheduler(observe=events.append)
    stage.joint_errors = [error]
    for start in range(3):
        scheduler.start(pipeline(stage, start, 4), tag=start)
    ended = finish(scheduler)
    assert [ended[start].result for start in range(3)] == [alone(start, 4) for start in range(3)]
    assert len(stage.forwards) == 12
    assert len(caplog.records) == 1
    assert {event.fallback for event in events[3:]} - {""} == {reason}  # the last has no need to share


def test_a_lost_device_ends_the_scheduler():
    stage, scheduler = ToyStage(), BatchScheduler()
    stage.joint_errors = [DeviceLostError("gone")]
    scheduler.start(pipeline(stage, 1, 1))
    scheduler.start(pipeline(stage, 2, 1))
    with pytest.raises(DeviceLostError):
        scheduler.step()


# ---- memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fits", range(1, 6))
def test_out_of_memory_loses_nothing(fits):
    events = []
    stage, scheduler = ToyStage(fits=fits), BatchScheduler(observe=events.append)
    for start in range(6):
        scheduler.start(pipeline(stage, start, 3), tag=start)
    ended = finish(scheduler)
    assert [ended[start].result for start in range(6)] == [alone(start, 3) for start in range(6)]
    splits = [event for event in events if isinstance(event, ForwardSplit)]
    assert stage.freed == len(splits) > 0
    assert max(rows for _, rows in stage.forwards) <= fits


@pytest.mark.parametrize("when", range(4))
def test_out_of_memory_at_any_step_loses_nothing(when):
    stage, scheduler = ToyStage(), BatchScheduler()
    for start in range(4):
        scheduler.start(pipeline(stage, start, 4), tag=start)
    for _ in range(when):
        scheduler.step()
    stage.fits = 1
    ended = finish(scheduler)
    assert [ended[start].result for start in range(4)] == [alone(start, 4) for start in range(4)]


def test_the_limit_persists():
    stage, scheduler = ToyStage(fits=2), BatchScheduler()
    for start in range(4):
        scheduler.start(pipeline(stage, start, 10))
    finish(scheduler)
    assert stage.freed == 1  # 4 rows; then 2 are known to fit


def test_the_limit_persists_for_a_single_call():
    stage, scheduler = ToyStage(fits=1), BatchScheduler()
    scheduler.start(lambda: [stage(1, 2) for _ in range(10)])
    finish(scheduler)
    assert stage.freed == 1


def test_a_call_of_several_rows_is_split_itself():
    stage, scheduler = ToyStage(fits=1), BatchScheduler()
    scheduler.start(lambda: stage(1, 2, 3), tag="wide")
    assert finish(scheduler)["wide"].result == [3, 5, 7]


def test_a_call_that_does_not_fit_fails_alone():
    stage, other, scheduler = ToyStage("large", fits=0), ToyStage("small"), BatchScheduler()
    scheduler.start(pipeline(stage, 1, 2, key="large"), tag="large")
    scheduler.start(pipeline(other, 1, 2, key="small"), tag="small")
    ended = finish(scheduler)
    assert isinstance(ended["large"].error, DeviceMemoryError)
    assert ended["small"].result == alone(1, 2)


def test_a_larger_forward_is_retried_later():
    stage, scheduler = (
        ToyStage(fits=2),
        BatchScheduler(memory_limits=MemoryLimits(retry_after=5), costs=RowCosts(samples=10**9)),
    )
    for start in range(4):
        scheduler.start(pipeline(stage, start, 100))
    for _ in range(20):
        scheduler.step()
    stage.fits = None
    finish(scheduler)
    assert max(rows for _, rows in stage.forwards) == 4


# ---- fairness, state, leaks --------------------------------------------------------------------------------


def test_a_stage_that_keeps_state_serves_one_request_at_a_time():
    stage, scheduler = ToyStage(exclusive=True), BatchScheduler()
    order = []
    for start in range(3):
        scheduler.start(
            pipeline(stage, start, 3, on_step=lambda step, steps, start=start: order.append(start)), tag=start
        )
    ended = finish(scheduler)
    assert [ended[start].result for start in range(3)] == [alone(start, 3) for start in range(3)]
    assert [start for start, _ in itertools.groupby(order)] == [0, 1, 2]


def test_a_cancelled_task_releases_its_exclusive_stage():
    stage, scheduler = ToyStage(exclusive=True), BatchScheduler()
    first = scheduler.start(pipeline(stage, 0, 3), tag=0)
    scheduler.start(pipeline(stage, 1, 3), tag=1)
    scheduler.step()
    scheduler.cancel(first)
    assert finish(scheduler)[1].result == alone(1, 3)


def test_fixed_rows_limit_a_forward():
    stage, scheduler = ToyStage(fixed_rows=2), BatchScheduler()
    for start in range(5):
        scheduler.start(pipeline(stage, start, 1), tag=start)
    ended = finish(scheduler)
    assert [ended[start].result for start in range(5)] == [alone(start, 1) for start in range(5)]
    assert max(rows for _, rows in stage.forwards) == 2


def test_the_time_of_a_forward_is_divided_among_its_tasks():
    events = []
    ticks = itertools.count()
    stage, scheduler = ToyStage(), BatchScheduler(observe=events.append, timer=WallTimer(lambda: next(ticks)))
    for start in range(2):
        scheduler.start(pipeline(stage, start, 2), tag=start)
    ended = finish(scheduler)
    assert [task.seconds for task in ended.values()] == [1.0, 1.0]
    assert all(isinstance(event, ForwardDone) and event.seconds == 1 for event in events)


def test_there_is_no_current_task_outside_of_a_scheduler():
    assert current_task() is None


def test_the_greenlet_of_a_request_is_freed():
    stage, scheduler = ToyStage(), BatchScheduler()

    def living():
        gc.collect()
        return sum(issubclass(type(thing), greenlet) for thing in gc.get_objects())

    before = living()
    for start in range(200):
        task = scheduler.start(pipeline(stage, start, 3))
        if start % 3 == 0:
            scheduler.cancel(task)
        scheduler.step()
        scheduler.ended()
    finish(scheduler)
    del task
    assert living() <= before
