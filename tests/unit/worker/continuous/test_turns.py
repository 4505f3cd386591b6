"""The next group of calls: the one that ends a request soonest, unless another one has waited."""

from imagegen_worker.engines.continuous.turns import AGEING, WaitingGroup, choose


def test_the_group_whose_first_request_ends_soonest_is_next():
    groups = {
        "long": WaitingGroup(1, 9.0, 0.0),
        "short": WaitingGroup(1, 2.0, 0.0),
        "middle": WaitingGroup(1, 5.0, 0.0),
    }
    assert choose(groups) == "short"


def test_seconds_count_per_image():
    assert choose({"one": WaitingGroup(1, 4.0, 0.0), "four": WaitingGroup(4, 8.0, 0.0)}) == "four"


def test_age_counts_for_a_group():
    long, short = WaitingGroup(1, 9.0, 8.0 / AGEING), WaitingGroup(1, 2.0, 0.0)
    assert choose({"short": short, "long": long}) == "long"


def test_the_first_of_equal_groups_is_next():
    assert choose({"b": WaitingGroup(1, 1.0, 1.0), "a": WaitingGroup(1, 1.0, 1.0)}) == "b"


def test_a_request_goes_before_those_that_start_later_than_the_stated_time():
    alone = 7.0
    large = WaitingGroup(1, alone, age=100.0)
    for images in (1, 8, 64):
        later = WaitingGroup(images, 0.0, age=100.0 - alone / AGEING - 0.01)
        assert choose({"later": later, "large": large}) == "large"
