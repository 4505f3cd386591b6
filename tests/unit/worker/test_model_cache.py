"""Who makes room for whom, and when."""

import itertools

import pytest

from imagegen_worker.core.model_cache import ModelCache, ModelSwap


def cache(*names, budget=30, patience=10.0):
    """A cache with models of 10 bytes each."""
    cache = ModelCache(budget, patience)
    for name in names:
        cache.add(name, 10, 0.0)
    return cache


def test_what_fits_is_loaded_at_once_whoever_is_at_work():
    one = cache("a", "b")
    one.request("c", 10, 1.0)
    assert one.next({"a"}, {"a", "b"}, 1.0) == ModelSwap("c", ())
    one.add("c", 10, 2.0)
    assert one.next({"a"}, {"a"}, 2.0) is None
    assert one.names == ("a", "b", "c")


def test_the_least_recently_used_make_room():
    one = cache("a", "b", "c")
    one.touch("a")
    one.request("d", 20, 1.0)
    assert one.next((), (), 1.0) == ModelSwap("d", ("b", "c"))
    one.touch("b")
    assert one.next((), (), 1.0) == ModelSwap("d", ("c", "a"))


def test_what_has_no_work_goes_before_what_has_and_of_that_the_longest_there():
    one = cache("a", "b", "c", patience=0.0)
    for name in ("c", "b", "a"):
        one.touch(name)
    one.request("d", 10, 1.0)
    assert one.next((), {"c", "b"}, 1.0) == ModelSwap("d", ("a",))
    assert one.next((), {"a", "b", "c"}, 1.0) == ModelSwap("d", ("a",))
    assert one.next({"a"}, {"a", "b", "c"}, 1.0) is None
    assert one.draining(1.0) == {"a"}


def test_what_is_bigger_than_all_stands_alone():
    one = cache("a", "b")
    one.request("huge", 1000, 1.0)
    assert one.next((), (), 1.0) == ModelSwap("huge", ("a", "b"))
    for name in ("a", "b"):
        one.remove(name)
    one.add("huge", 1000, 2.0, evicted=True)
    one.request("a", 10, 3.0)
    assert one.next((), (), 3.0) == ModelSwap("a", ("huge",))


def test_a_model_that_is_used_stays_until_the_other_has_been_patient():
    one = cache("a", budget=10)
    one.request("b", 10, 5.0)
    assert one.next_deadline() == 15.0
    for running, waiting in (({"a"}, ()), ((), {"a"}), ({"a"}, {"a"})):
        assert one.next(running, waiting, 14.9) is None
        assert one.draining(14.9) == frozenset()
    assert one.draining(15.0) == {"a"}, "nothing more is begun with it"
    assert one.next({"a"}, {"a"}, 15.0) is None, "what runs is finished"
    assert one.next((), {"a"}, 15.0) == ModelSwap("b", ("a",))


def test_after_a_change_the_newcomer_has_its_time_too():
    one = cache("a", budget=10)
    one.request("b", 10, 5.0)
    one.request("c", 10, 6.0)
    one.remove("a")
    one.add("b", 10, 20.0, evicted=True)
    one.request("a", 10, 20.0)
    assert one.pending == ("c", "a")
    assert one.next((), {"b"}, 29.0) is None
    assert one.next_deadline() == 30.0
    assert one.next((), {"b"}, 30.0) == ModelSwap("c", ("b",))


def test_free_room_is_for_whoever_fits_but_not_past_one_that_is_due():
    one = cache("a", "b")
    one.request("big", 25, 1.0)
    one.request("small", 10, 2.0)
    assert one.next({"a"}, (), 3.0) == ModelSwap("small", ())
    assert one.next({"a"}, (), 11.0) is None, "it would be in the way"
    one.withdraw("big")
    assert one.next({"a"}, (), 11.0) == ModelSwap("small", ())


@pytest.mark.parametrize("patience", [0.0, 10.0])
def test_whatever_is_asked_for_without_end_all_have_their_turns(patience):
    """Four models, room for two, each always with work: no one waits for longer than three turns."""
    one = cache("a", "b", budget=20, patience=patience)
    names, loads, now = ("a", "b", "c", "d"), [], 0.0
    for _ in range(400):
        now += 1.0
        for name in names:
            one.request(name, 10, now)
        running = set(one.names) - one.draining(now)
        for name in sorted(running):
            one.touch(name)
        if (swap := one.next(running, one.names, now)) is not None:
            for name in swap.evict:
                one.remove(name)
            one.add(swap.name, 10, now, evicted=True)
            loads.append(swap.name)
        assert len(one.names) <= 2
    assert len(loads) >= 30
    for name in names:
        places = [place for place, loaded in enumerate(loads) if loaded == name]
        assert max(after - before for before, after in itertools.pairwise(places)) <= 4
