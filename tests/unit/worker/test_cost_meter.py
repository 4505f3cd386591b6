"""Costs of models from forwards and calls, and predictions for whole requests."""

import random

import pytest

from imagegen_worker.core.cost_meter import COMPARED_REQUESTS, CostMeter
from tests.unit.worker.bench import resolved

SIDES = (256, 512, 1024)


class Device:
    """Runs requests alone on simulated time, with a fixed cost of text encoders and a decoder."""

    def __init__(self, *, noise=0.0, forwards_per_step=1, seed=1):
        self.meter = CostMeter()
        self.chance = random.Random(seed)
        self.noise = noise
        self.forwards_per_step = forwards_per_step
        self.number = 0
        self.slow = 1.0

    def take(self, seconds):
        return self.slow * seconds * self.chance.lognormvariate(0, self.noise)

    def run(self, *, side=512, steps=20, images=1, company=0):
        """Run a request, of which each forward is shared with `company` images of other requests."""
        request = resolved(width=side, height=side, num_inference_steps=steps, seeds=tuple(range(images)))
        self.number += 1
        number, pixels = self.number, request.megapixels
        self.meter.start(number, request)
        self.meter.add_other({number: images}, self.take(0.4))
        for _ in range(steps * self.forwards_per_step):
            shared = {number: images} | ({-1: company} if company else {})
            self.meter.add_forward(shared, self.take(0.035 + 0.046 * pixels * (images + company)))
        self.meter.add_decoding({number: images}, self.take(0.3 * pixels * images))
        return self.meter.finish(number)

    def mixed(self, count):
        return [
            self.run(
                side=self.chance.choice(SIDES),
                steps=self.chance.choice((4, 20, 50)),
                images=self.chance.choice((1, 1, 4)),
                company=self.chance.choice((0, 0, 3)),
            )
            for _ in range(count)
        ]


def error(measured):
    return abs(measured.predicted / measured.seconds - 1)


def test_forwards_text_encoders_and_decoders_give_the_costs():
    costs = Device().mixed(10)[-1].costs
    assert costs.forward_seconds == pytest.approx(0.035, rel=0.02)
    assert costs.megapixel_seconds == pytest.approx(0.046, rel=0.02)
    assert costs.request_seconds == pytest.approx(0.4)
    assert costs.decode_megapixel_seconds == pytest.approx(0.3)
    assert costs.samples > 100


def test_the_first_request_has_no_prediction():
    device = Device()
    first, second = device.run(), device.run()
    assert first.predicted is None
    assert first.costs.error is None
    assert second.predicted == pytest.approx(second.seconds, rel=0.01)
    assert second.costs.error == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("seed", range(5))
def test_mixed_requests_are_predicted_within_15_percent(noise, seed):
    device = Device(noise=noise, seed=seed)
    assert device.mixed(COMPARED_REQUESTS + 1)[-1].costs.error < 0.15


def test_a_request_in_a_batch_takes_its_share_of_each_forward():
    measured = Device().run(steps=10, images=1, company=3)
    pixels = 512 * 512 / 1e6
    alone = 0.4 + 0.3 * pixels
    assert measured.seconds == pytest.approx(alone + 10 * (0.035 + 0.046 * pixels * 4) / 4)


def test_a_step_of_several_forwards_costs_all_of_them():
    device = Device(forwards_per_step=2)
    measured = device.mixed(10)[-1]
    assert measured.costs.forward_seconds == pytest.approx(0.07, rel=0.02)
    assert error(measured) < 0.02


def test_predictions_follow_a_device_that_became_slower():
    device = Device()
    device.mixed(10)
    device.slow = 2.0
    first, *_, last = [device.run() for _ in range(7)]
    assert error(first) == pytest.approx(0.5, abs=0.05)
    assert error(last) < 0.15


def test_image_to_image_requests_are_predicted_by_the_steps_that_they_execute():
    meter = CostMeter()
    for number in range(3):
        meter.start(number, resolved(num_inference_steps=20, strength=0.5))
        for _ in range(10):
            meter.add_forward({number: 1}, 0.1)
        measured = meter.finish(number)
    assert measured.predicted == pytest.approx(1.0, rel=0.01)


def test_whole_calls_give_the_costs_of_a_static_engine():
    meter, chance = CostMeter(), random.Random(4)
    for number in range(0, 60, 2):
        steps, side, pair = chance.choice((4, 20, 50)), chance.choice(SIDES), chance.random() < 0.5
        request = resolved(width=side, height=side, num_inference_steps=steps)
        images = {number: 1, number + 1: 1} if pair else {number: 1}
        for each in images:
            meter.start(each, request)
        pixels = request.megapixels * len(images)
        meter.add_call(images, 0.5 + steps * (0.03 + 0.05 * pixels) + 0.2 * pixels)
        measured = [meter.finish(each) for each in images]
    costs = measured[-1].costs
    found = (costs.request_seconds, costs.forward_seconds, costs.megapixel_seconds)
    assert found == pytest.approx((0.5, 0.03, 0.05), rel=0.1)
    assert costs.error < 0.15


def test_models_have_costs_of_their_own():
    meter = CostMeter()
    for number, (model, seconds) in enumerate({"slow": 4.0, "fast": 1.0}.items()):
        meter.start(number, resolved(model=model, num_inference_steps=1))
        meter.add_forward({number: 1}, seconds)
        meter.finish(number)
    pixels = 64 * 64 / 1e6
    assert meter.costs("slow").forward(pixels, 1) == pytest.approx(4.0)
    assert meter.costs("fast").forward(pixels, 1) == pytest.approx(1.0)
    assert meter.costs("other") is None


def test_forwards_of_unknown_and_ended_jobs_are_ignored():
    meter = CostMeter()
    meter.add_forward({1: 1}, 1.0)
    meter.add_decoding({1: 1}, 1.0)
    meter.add_other({1: 1}, 1.0)
    meter.add_call({1: 1}, 1.0)
    assert meter.finish(1) is None
    meter.start(2, resolved())
    meter.discard(2)
    meter.discard(2)
    assert meter.finish(2) is None
    meter.start(3, resolved())
    assert meter.finish(3) is None, "no forward was measured"
