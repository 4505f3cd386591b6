"""The continuous engine: commands in, events out, one answer for each job."""

import contextlib
import dataclasses
import random
from dataclasses import replace

import pytest
from PIL import Image

from imagegen_protocol.errors import InvalidRequestError
from imagegen_worker.backends import DeviceLostError, StoppedError
from imagegen_worker.core import events as ev
from imagegen_worker.core.model import ResolvedRequest
from imagegen_worker.engines.continuous.calls import current_task
from imagegen_worker.engines.continuous.engine import ContinuousEngine
from imagegen_worker.engines.continuous.timing import WallTimer
from imagegen_worker.engines.continuous.turns import AGEING
from imagegen_worker.mailbox import Mailbox
from tests.unit.worker.continuous.models import ToyClock, ToyStage


class LateTimer(WallTimer):
    """Knows the time of a forward only once a pipeline has copied images from the device."""

    copied = 0
    started = 0

    def start(self):
        self.started += 1
        return [*super().start(), self.started]

    def stop(self, mark):
        mark.insert(1, self._clock())

    def seconds(self, mark, *, wait):
        return mark[1] - mark[0] if wait or mark[2] <= self.copied else None


class ToyBackend:
    """Generates one grey pixel per seed by as many forwards as steps; the shape of a request is its width."""

    def __init__(self, stage, timer=None, *, shares_calls=True, drops_rows=False):
        self.stage = stage
        self.timer = timer or WallTimer()
        self.call_key = lambda request: request.batch_key if shares_calls else None
        self.drops_rows = lambda request: drops_rows
        self.warnings = lambda request: ("backend",) if request.prompt == "long" else ()
        self.open = False
        self.made = []

    @contextlib.contextmanager
    def session(self):
        self.open = True
        yield
        self.open = False

    def generate(self, rows, on_step):
        assert self.open
        self.made.append([row.seed for row in rows])
        assert len({row.request.batch_key for row in rows}) == 1
        request = rows[0].request
        if any(row.request.prompt == "broken" for row in rows):
            raise ValueError("a broken prompt")
        for step in range(request.num_inference_steps):
            unwanted = current_task().unwanted if self.drops_rows(None) else ()
            self.stage(*(row.seed for at, row in enumerate(rows) if at not in unwanted), key=request.width)
            on_step(step + 1, request.num_inference_steps)
        if isinstance(self.timer, LateTimer):
            self.timer.copied = self.timer.started
        return [Image.new("L", (1, 1), row.seed) for row in rows]


class Encoder:
    """Stores submitted results by job number."""

    def __init__(self):
        self.results = {}

    def submit(self, raw):
        assert raw.number not in self.results
        self.results[raw.number] = raw


class Script(Mailbox):
    """Returns each command after a number of forwards, and `Stop` when nothing is left to do."""

    def __init__(self, stage, commands):
        super().__init__()
        self.stage = stage
        self.script = sorted(commands, key=lambda item: item[0])
        self.posted = []

    def take(self, timeout):
        if self.script and (timeout is None or self.script[0][0] <= len(self.stage.forwards)):
            return self.script.pop(0)[1]
        return ev.Stop() if timeout is None else None

    def post(self, event):
        self.posted.append(event)


def job(number, *, seeds=(1,), steps=3, width=512, prompt="a cat"):
    request = ResolvedRequest(
        model="toy",
        prompt=prompt,
        negative_prompt=None,
        seeds=tuple(seeds),
        num_inference_steps=steps,
        guidance_scale=None,
        width=width,
        height=width,
    )
    return ev.Job(number, request, arrived=0.0)


def run(commands, *, stage=None, max_batch_size=8, timer=None):
    """Return events and results after all commands, given as (number of forwards before it, command)."""
    stage = stage or ToyStage()
    mailbox, encoder = Script(stage, commands), Encoder()
    engine = ContinuousEngine(ToyBackend(stage, timer), encoder, max_batch_size=max_batch_size)
    try:
        engine.run(mailbox)
    finally:
        mailbox.close()
    return mailbox.posted, encoder.results


def of(kind, posted):
    return [event for event in posted if isinstance(event, kind)]


def test_a_job_starts_steps_and_ends():
    posted, results = run([(0, job(7, seeds=(5,), steps=2))])
    assert posted[0] == ev.Started((7,))
    assert of(ev.Stepped, posted) == [ev.Stepped((7,), 1, 2), ev.Stepped((7,), 2, 2)]
    assert isinstance(posted[-1], ev.Idle)
    assert results[7].images[0].getpixel((0, 0)) == 5
    assert (results[7].request.seeds, results[7].batch_size) == ((5,), 1)


def test_jobs_join_and_leave_at_any_forward():
    stage = ToyStage()
    _, results = run([(0, job(1, steps=4)), (1, job(2, steps=2)), (2, job(3, steps=4))], stage=stage)
    assert [rows for _, rows in stage.forwards] == [1, 2, 3, 2, 1, 1]
    assert sorted(results) == [1, 2, 3]
    assert [results[number].batch_size for number in (1, 2, 3)] == [3, 3, 3]


def test_images_of_a_job_run_separately_and_are_returned_in_order():
    posted, results = run([(0, job(1, seeds=(4, 5, 6), steps=2))], max_batch_size=2)
    assert [image.getpixel((0, 0)) for image in results[1].images] == [4, 5, 6]
    assert of(ev.Started, posted) == [ev.Started((1,))]
    assert [event.step for event in of(ev.Stepped, posted)] == [1, 2]
    assert {event.steps for event in of(ev.Stepped, posted)} == {2}


def run_calls(commands, *, stage=None, max_batch_size=8, **options):
    """Return the seeds of each backend call, the posted events, and the results."""
    stage = stage or ToyStage()
    mailbox, encoder = Script(stage, commands), Encoder()
    backend = ToyBackend(stage, **options)
    ContinuousEngine(backend, encoder, max_batch_size=max_batch_size).run(mailbox)
    mailbox.close()
    return backend.made, mailbox.posted, encoder.results


def test_images_with_equal_call_keys_that_start_together_share_one_call():
    stage = ToyStage()
    commands = [(0, job(1, seeds=(4, 5))), (0, job(2, seeds=(6,))), (0, job(3, seeds=(7,), steps=2))]
    made, posted, results = run_calls(commands, stage=stage)
    assert made == [[4, 5, 6], [7]]  # another number of steps can't be in the same call
    assert [rows for _, rows in stage.forwards] == [4, 4, 3]
    assert [image.getpixel((0, 0)) for image in results[1].images] == [4, 5]
    assert {result.batch_size for result in results.values()} == {4}
    assert [call.requests for call in of(ev.CallDone, posted)] == [4, 4, 3]


def test_without_call_keys_each_image_has_its_own_call():
    made, _, results = run_calls([(0, job(1, seeds=(4, 5))), (0, job(2, seeds=(6,)))], shares_calls=False)
    assert made == [[4], [5], [6]]
    assert sorted(results) == [1, 2]


def test_the_oldest_image_starts_first_even_if_others_could_share():
    commands = [(0, job(number, seeds=(number,), steps=2 + number % 2)) for number in range(8)]
    made, _, _ = run_calls(commands, max_batch_size=4)
    assert made[:2] == [[0, 2], [1, 3]]


def test_a_failed_call_for_several_images_is_repeated_image_by_image():
    stage = ToyStage()
    stage.poison = {13}
    commands = [
        (0, job(1, seeds=(4,))),
        (0, job(2, seeds=(5, 13))),
        (0, job(3, seeds=(6,))),
        (0, job(4, seeds=(7,))),
    ]
    made, posted, results = run_calls(commands, stage=stage)
    assert made == [[4, 5, 13, 6, 7], [4], [5], [13], [6], [7]]
    assert sorted(results) == [1, 3, 4]
    assert [event.number for event in of(ev.Failed, posted)] == [2]
    assert len(of(ev.Started, posted)) == 4
    assert posted.count(ev.Idle()) == 1


def test_a_call_runs_until_all_its_jobs_are_cancelled():
    stage = ToyStage()
    commands = [(0, job(number, seeds=(number,), steps=9)) for number in range(3)]
    commands += [(2, ev.Cancel(0)), (3, ev.Cancel(1))]
    made, posted, results = run_calls(commands, stage=stage)
    assert (made, sorted(results)) == ([[0, 1, 2]], [2])
    numbers = [event.numbers[0] for event in of(ev.Stepped, posted)]
    assert (numbers.count(0), numbers.count(1), numbers.count(2)) == (2, 3, 9)
    stage = ToyStage()
    run_calls([*commands, (4, ev.Cancel(2))], stage=stage)
    assert sum(rows for _, rows in stage.forwards) == 3 * 4


def test_cancelled_images_free_their_slots():
    stage = ToyStage()
    commands = [(0, job(number, seeds=(number,), steps=9)) for number in range(4)]
    commands += [(0, job(4, seeds=(4, 5), steps=2)), (3, ev.Cancel(0)), (3, ev.Cancel(2))]
    made, _, results = run_calls(commands, stage=stage, max_batch_size=4, drops_rows=True)
    assert made == [[0, 1, 2, 3], [4, 5]]
    assert sorted(results) == [1, 3, 4]
    assert max(rows for _, rows in stage.forwards) == 4
    assert results[4].batch_size == 4
    # Nine steps: four with all rows, two with the rows of the two new jobs, three with two rows.
    assert sum(rows for _, rows in stage.forwards) == 4 * 4 + 2 * (2 + 2) + 3 * 2


def test_a_call_runs_in_parts_if_fewer_rows_are_faster():
    clock = ToyClock(lambda width, rows: 4 if rows <= 4 else rows**2)
    stage = ToyStage(clock=clock)
    commands = [(0, job(number, seeds=(number,), steps=60)) for number in range(8)]
    made, _, results = run_calls(commands, stage=stage, timer=WallTimer(clock))
    assert (len(made), len(results)) == (1, 8)
    late = [rows for _, rows in stage.forwards[60:]]
    assert late.count(4) > 0.9 * len(late)


def test_the_maximum_batch_size_is_kept():
    stage = ToyStage()
    _, results = run([(0, job(number, seeds=(1, 2))) for number in range(5)], stage=stage, max_batch_size=3)
    assert len(results) == 5
    assert max(rows for _, rows in stage.forwards) == 3


def test_calls_report_shared_and_completed_images():
    posted, _ = run([(0, job(1, steps=2)), (0, job(2, steps=3))])
    done = of(ev.CallDone, posted)
    assert [call.requests for call in done] == [2, 2, 1]
    assert sum(call.images for call in done) == 2
    assert [call.rows for call in done] == [2, 2, 1]
    assert {call.steps for call in done} == {1}
    assert done[-1].seconds_per_image is not None


def test_calls_report_their_jobs():
    posted, _ = run([(0, job(1, steps=4)), (1, job(2, seeds=(1, 2), steps=2)), (2, job(3, steps=4))])
    calls = [(set(call.numbers), call.rows) for call in of(ev.CallDone, posted)]
    assert calls == [({1}, 1), ({1, 2}, 3), ({1, 2, 3}, 4), ({1, 3}, 2), ({3}, 1), ({3}, 1)]
    assert all(len(call.numbers) == len(set(call.numbers)) for call in of(ev.CallDone, posted))


def test_the_wait_for_the_first_forward_is_reported_once_per_job():
    clock = ToyClock(lambda width, rows: 1.0)
    stage = ToyStage(clock=clock)
    commands = [(0, job(1, seeds=(1, 2), steps=3)), (2, job(2, steps=2))]
    mailbox = Script(stage, commands)
    backend = ToyBackend(stage, WallTimer(clock))
    ContinuousEngine(backend, Encoder(), max_batch_size=4, clock=clock).run(mailbox)
    mailbox.close()
    assert [call.waits for call in of(ev.CallDone, mailbox.posted)] == [(0.0,), (), (2.0,), ()]


@pytest.mark.parametrize("after", range(4))
def test_a_cancelled_job_ends_without_an_answer(after):
    stage = ToyStage()
    commands = [(0, job(1, steps=4)), (0, job(2, seeds=(1, 2), steps=4)), (after, ev.Cancel(2))]
    posted, results = run(commands, stage=stage)
    assert sorted(results) == [1]
    assert not of(ev.Failed, posted)
    assert posted.count(ev.Idle()) == 1


def test_a_cancelled_waiting_job_never_starts():
    posted, results = run([(0, job(1)), (0, job(2)), (1, ev.Cancel(2))], max_batch_size=1)
    assert sorted(results) == [1]
    assert of(ev.Started, posted) == [ev.Started((1,))]


def test_cancelling_an_unknown_job_does_nothing():
    posted, _ = run([(0, ev.Cancel(9))])
    assert posted == []


def test_a_broken_request_fails_alone():
    stage = ToyStage()
    stage.poison = {13}
    commands = [(0, job(1)), (0, job(2, prompt="broken")), (0, job(3, seeds=(1, 13))), (0, job(4))]
    posted, results = run(commands, stage=stage)
    assert sorted(results) == [1, 4]
    failed = {event.number: event for event in of(ev.Failed, posted)}
    assert sorted(failed) == [2, 3]
    assert {event.code for event in failed.values()} == {"generation_failed"}
    assert failed[2].message == "ValueError: a broken prompt"


def test_an_invalid_request_error_of_the_backend_keeps_its_code():
    class Backend(ToyBackend):
        def generate(self, rows, on_step):
            if rows[0].request.loras:
                raise InvalidRequestError("loras: there is no 'ink' here")
            return super().generate(rows, on_step)

    stage = ToyStage()
    wrong = ev.Job(2, dataclasses.replace(job(2).request, loras=(("ink", 1.0),)), 0.0)
    mailbox, encoder = Script(stage, [(0, job(1)), (0, wrong)]), Encoder()
    ContinuousEngine(Backend(stage), encoder, max_batch_size=8).run(mailbox)
    mailbox.close()
    assert sorted(encoder.results) == [1]
    assert of(ev.Failed, mailbox.posted) == [ev.Failed(2, "invalid_request", "loras: there is no 'ink' here")]


def test_tasks_have_the_adapters_of_their_request():
    seen = []

    class Backend(ToyBackend):
        def generate(self, rows, on_step):
            seen.append(current_task().adapters)
            return super().generate(rows, on_step)

    stage = ToyStage()
    inked = ev.Job(2, dataclasses.replace(job(2).request, loras=(("ink", 1.0),)), 0.0)
    mailbox = Script(stage, [(0, job(1)), (0, inked)])
    ContinuousEngine(Backend(stage), Encoder(), max_batch_size=8).run(mailbox)
    mailbox.close()
    assert seen == [None, (("ink", 1.0),)]


def test_out_of_memory_is_split_and_reported():
    stage = ToyStage(fits=2)
    posted, results = run([(0, job(number)) for number in range(4)], stage=stage)
    assert len(results) == 4
    assert of(ev.CallFailed, posted) == [ev.CallFailed(4, 0.0, split=True)]


def test_the_error_of_an_image_that_does_not_fit_names_both_sizes():
    class Large(ToyStage):
        def _forward(self, values, key):
            self.fits = 0 if key == 2048 else None
            return super()._forward(values, key)

    posted, results = run(
        [(0, job(1, width=1024)), (1, job(2, width=2048)), (4, job(3, width=2048))], stage=Large()
    )
    assert sorted(results) == [1]
    failed = of(ev.Failed, posted)
    assert [event.code for event in failed] == ["out_of_memory"] * 2
    assert "2048x2048" in failed[0].message
    assert "1024x1024 pixels fitted" in failed[1].message


def test_the_error_names_the_size_of_the_first_images():
    stage = ToyStage(fits=0)
    mailbox = Script(stage, [(0, job(1))])
    ContinuousEngine(ToyBackend(stage), Encoder(), max_batch_size=1, fits=(64, 128)).run(mailbox)
    mailbox.close()
    (failed,) = of(ev.Failed, mailbox.posted)
    assert failed.message.endswith("64x128 pixels fitted")


def test_a_lost_device_ends_the_engine():
    class Lost(ToyStage):
        def _forward(self, values, key):
            raise DeviceLostError("gone")

    with pytest.raises(DeviceLostError):
        run([(0, job(1))], stage=Lost())


def test_stop_finishes_running_jobs_and_starts_none():
    _, results = run([(0, job(1)), (0, job(2)), (1, ev.Stop())], max_batch_size=1)
    assert sorted(results) == [1]


def test_stopped_error_of_on_step_is_no_failure():
    class Backend(ToyBackend):
        def generate(self, rows, on_step):
            raise StoppedError

    stage = ToyStage()
    mailbox = Script(stage, [(0, job(1))])
    ContinuousEngine(Backend(stage), Encoder(), max_batch_size=1).run(mailbox)
    mailbox.close()
    assert not of(ev.Failed, mailbox.posted)


@pytest.mark.parametrize("small", [4, 10, 20])
def test_a_large_request_ends_within_the_stated_time_among_many_small_ones(small):
    clock = ToyClock(lambda width, rows: rows * (width / 512) ** 2)
    stage = ToyStage(clock=clock)
    ended = {}
    commands = [(0, job(0, width=1024, steps=10))]
    commands += [(0, job(number, steps=small)) for number in range(1, 2000 // small)]
    mailbox, encoder = Script(stage, commands), Encoder()
    encoder.submit = lambda raw: ended.setdefault(raw.number, clock.now)
    backend = ToyBackend(stage, WallTimer(clock))
    ContinuousEngine(backend, encoder, max_batch_size=4, clock=clock).run(mailbox)
    mailbox.close()
    assert len(ended) == len(commands)
    assert ended[1] < ended[0]  # the small ones do not wait for the large one
    alone = 10 * clock.cost(1024, 1)
    others = 3 * small * clock.cost(512, 1)
    assert ended[0] <= alone / AGEING + alone + others < 0.2 * max(ended.values())


def test_requests_that_are_nearly_done_go_first():
    clock = ToyClock(lambda width, rows: 1.0 + 0.01 * rows)
    stage, ended = ToyStage(clock=clock), []
    commands = [
        (0, job(1, width=512, steps=20)),
        (0, job(2, width=768, steps=2)),
        (0, job(3, width=1024, steps=8)),
    ]
    mailbox, encoder = Script(stage, commands), Encoder()
    encoder.submit = lambda raw: ended.append((raw.number, round(clock.now)))
    backend = ToyBackend(stage, WallTimer(clock))
    ContinuousEngine(backend, encoder, max_batch_size=4, clock=clock).run(mailbox)
    mailbox.close()
    assert [number for number, _ in ended] == [2, 3, 1]
    assert ended[0][1] <= 4


@pytest.mark.parametrize("seed", range(20))
def test_every_job_has_exactly_one_answer(seed):
    rng = random.Random(seed)
    stage = ToyStage(fits=rng.choice([None, 1, 3]))
    stage.poison = {13}
    commands = []
    for number in range(30):
        seeds = [rng.choice([1, 2, 3, 3, 13]) for _ in range(rng.randint(1, 3))]
        at = rng.randint(0, 60)
        prompt = rng.choice(["a cat", "a cat", "broken"])
        commands.append(
            (at, job(number, seeds=seeds, steps=rng.randint(1, 6), width=rng.choice([512, 1024]), prompt=prompt))
        )
        if rng.random() < 0.3:
            commands.append((at + rng.randint(0, 10), ev.Cancel(number)))
    cancelled = {command.number for _, command in commands if isinstance(command, ev.Cancel)}
    posted, results = run(commands, stage=stage, max_batch_size=rng.randint(1, 8))
    answers = [*results, *(event.number for event in of(ev.Failed, posted))]
    assert len(answers) == len(set(answers))
    assert set(range(30)) - set(answers) <= cancelled
    assert posted[-1] == ev.Idle()


def test_a_result_has_the_warnings_of_its_input_images_and_of_the_backend():
    scaled = job(1, prompt="long")
    scaled = replace(scaled, request=replace(scaled.request, warnings=("image",)))
    _, results = run([(0, scaled), (0, job(2))])
    assert [results[number].request.warnings for number in (1, 2)] == [("image", "backend"), ()]


def test_requests_of_mixed_sizes_are_predicted_within_15_percent():
    clock = ToyClock(lambda key, rows: 0.035 + 0.046 * (key / 1000) ** 2 * rows)
    stage, chance = ToyStage(clock=clock), random.Random(5)
    commands = []
    for number in range(60):
        steps, width = chance.choice((3, 10, 20)), chance.choice((256, 512, 1024))
        commands.append((4 * number, job(number, steps=steps, width=width, seeds=range(chance.choice((1, 1, 3))))))
    posted, _ = run(commands, stage=stage, timer=WallTimer(clock))
    measured = of(ev.CostsMeasured, posted)
    assert len(measured) == 60
    assert measured[20].costs.error < 0.15
    costs = measured[-1].costs
    assert (costs.forward_seconds, costs.megapixel_seconds) == pytest.approx((0.035, 0.046), rel=0.02)


def test_all_forwards_of_a_request_are_measured_on_a_device_that_runs_asynchronously():
    clock = ToyClock(lambda key, rows: 1.0)
    commands = [(0, job(1, steps=3)), (0, job(2, steps=5))]
    posted, _ = run(commands, stage=ToyStage(clock=clock), timer=LateTimer(clock))
    assert [each.seconds for each in of(ev.CostsMeasured, posted)] == [1.5, 3.5]


def test_cancelled_and_failed_jobs_are_not_measured():
    posted, _ = run([(0, job(1, steps=9)), (0, job(2, prompt="broken")), (2, ev.Cancel(1)), (3, job(3))])
    assert len(of(ev.CostsMeasured, posted)) == 1
