"""Fitting of costs: degenerate measurements, outliers, noise and drift."""

import random

import pytest

from imagegen_worker.core.cost_fit import OUTLIERS_IN_A_ROW, CostFit, RecentMedian

FORWARD, MEGAPIXEL = 0.035, 0.046
SIZES = (0.065, 0.26, 1.05, 4.2)


def measured(fit, sizes=SIZES, *, count=20, slow=1.0, noise=0.0, seed=1):
    """Add forwards of random sizes (megapixels in total), each of which takes `slow` times the model's seconds."""
    chance = random.Random(seed)
    for _ in range(count):
        size = chance.choice(sizes)
        fit.observe((1.0, size), slow * (FORWARD + MEGAPIXEL * size) * chance.lognormvariate(0, noise))
    return fit


def errors(fit, sizes=SIZES, slow=1.0):
    """Return the relative errors of the predicted forwards."""
    forward, megapixel = fit.coefficients()
    return [abs((forward + megapixel * size) / (slow * (FORWARD + MEGAPIXEL * size)) - 1) for size in sizes]


def fresh():
    return CostFit((0.5, 0.5))


def test_nothing_is_known_before_the_first_measurement():
    assert fresh().coefficients() is None


def test_exact_measurements_give_the_coefficients():
    forward, megapixel = measured(fresh()).coefficients()
    assert forward == pytest.approx(FORWARD, rel=0.01)
    assert megapixel == pytest.approx(MEGAPIXEL, rel=0.01)


def test_measurements_of_one_size_are_predicted_and_divided_by_the_shares():
    fit = measured(fresh(), (1.05,))
    forward, megapixel = fit.coefficients()
    assert errors(fit, (1.05,))[0] < 0.01
    assert forward == pytest.approx(megapixel * 1.05, rel=0.01)


@pytest.mark.parametrize("seed", range(10))
def test_noise_of_a_tenth_does_not_cost_more_accuracy_than_that(seed):
    assert max(errors(measured(fresh(), noise=0.1, count=40, seed=seed))) < 0.15


@pytest.mark.parametrize("factor", [5.0, 50.0, 1000.0, 0.01])
def test_a_wrong_first_measurement_has_no_lasting_effect(factor):
    fit = fresh()
    measured(fit, count=1, slow=factor)
    assert max(errors(measured(fit, count=OUTLIERS_IN_A_ROW + 17))) < 0.1


def test_single_outliers_are_ignored():
    fit = measured(fresh())
    before = fit.coefficients()
    measured(fit, count=OUTLIERS_IN_A_ROW - 1, slow=30.0)
    assert fit.coefficients() == before
    measured(fit, count=1)
    assert max(errors(fit)) < 0.02


@pytest.mark.parametrize("slow", [2.0, 0.5, 20.0])
@pytest.mark.parametrize("seed", range(5))
def test_another_speed_is_known_after_twenty_forwards(slow, seed):
    fit = measured(fresh(), count=100, seed=seed)
    measured(fit, count=20, slow=slow, seed=seed + 100)
    assert max(errors(fit, slow=slow)) < 0.15


def test_another_speed_counts_for_sizes_that_were_not_measured_since():
    fit = measured(fresh(), count=100)
    measured(fit, (1.05,), count=20, slow=2.0)
    assert max(errors(fit, slow=2.0)) < 0.2


def test_many_measurements_of_one_size_do_not_spoil_what_others_have_shown():
    fit = measured(fresh())
    measured(fit, (8.4,), count=3000, noise=0.05)
    assert max(errors(fit)) < 0.1


@pytest.mark.parametrize(("forward", "megapixel"), [(0.5, 0.0), (0.0, 0.5)])
def test_a_part_that_costs_nothing_is_not_negative(forward, megapixel):
    fit, chance = fresh(), random.Random(3)
    for _ in range(60):
        size = chance.choice(SIZES)
        fit.observe((1.0, size), (forward + megapixel * size) * chance.lognormvariate(0, 0.1))
    found = fit.coefficients()
    assert min(found) >= 0
    predicted = found[0] + found[1] * 1.05
    assert predicted == pytest.approx(forward + megapixel * 1.05, rel=0.15)


def test_measurements_without_duration_or_features_are_ignored():
    fit = fresh()
    fit.observe((1.0, 1.0), 0.0)
    fit.observe((0.0, 0.0), 1.0)
    assert fit.coefficients() is None
    assert fit.count == 0


def test_a_feature_that_never_occurs_has_no_coefficient():
    fit = fresh()
    for _ in range(5):
        fit.observe((0.0, 2.0), 1.0)
    assert fit.coefficients() == pytest.approx((0.0, 0.5))


def test_whole_calls_are_divided_into_fixed_steps_and_decoding():
    fit, chance = CostFit((0.05, 0.45, 0.45, 0.05)), random.Random(2)
    for _ in range(40):
        size, steps = chance.choice(SIZES), chance.choice((4, 20, 50))
        fit.observe((1, steps, steps * size, size), 0.5 + 0.03 * steps + 0.05 * steps * size + 0.2 * size)
    assert fit.coefficients() == pytest.approx((0.5, 0.03, 0.05, 0.2), rel=0.1)


def test_a_median_is_not_moved_by_an_outlier():
    recent = RecentMedian(5)
    assert recent.value(7.0) == 7.0
    for value in (50.0, 1.0, 1.0, 2.0):
        recent.observe(value)
    assert recent.value(7.0) == 1.5
    for _ in range(5):
        recent.observe(3.0)
    assert recent.value(7.0) == 3.0
