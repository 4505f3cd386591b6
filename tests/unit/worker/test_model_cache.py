"""Which models are loaded and evicted, and when."""

import itertools

import pytest

from imagegen_worker.core.model_cache import ModelCache, ModelSwap


def cache(*names, budget=30, patience=10.0):
    """Return a cache with models of 10 bytes each."""
    cache = ModelCache(budget, patience)
    for name in names:
        cache.add(name, 10, 0.0)
    return cache


def test_a_model_that_fits_is_loaded_at_once():
    models = cache("a", "b")
    models.request("c", 10, 1.0)
    assert models.next({"a"}, {"a", "b"}, 1.0) == ModelSwap("c", ())
    models.add("c", 10, 2.0)
    assert models.next({"a"}, {"a"}, 2.0) is None
    assert models.names == ("a", "b", "c")


def test_the_least_recently_used_models_are_evicted():
    models = cache("a", "b", "c")
    models.touch("a")
    models.request("d", 20, 1.0)
    assert models.next((), (), 1.0) == ModelSwap("d", ("b", "c"))
    models.touch("b")
    assert models.next((), (), 1.0) == ModelSwap("d", ("c", "a"))


def test_idle_models_are_evicted_before_busy_ones_and_the_first_loaded_busy_one_first():
    models = cache("a", "b", "c", patience=0.0)
    for name in ("c", "b", "a"):
        models.touch(name)
    models.request("d", 10, 1.0)
    assert models.next((), {"c", "b"}, 1.0) == ModelSwap("d", ("a",))
    assert models.next((), {"a", "b", "c"}, 1.0) == ModelSwap("d", ("a",))
    assert models.next({"a"}, {"a", "b", "c"}, 1.0) is None
    assert models.draining(1.0) == {"a"}


def test_a_model_larger_than_the_budget_is_loaded_alone():
    models = cache("a", "b")
    models.request("huge", 1000, 1.0)
    assert models.next((), (), 1.0) == ModelSwap("huge", ("a", "b"))
    for name in ("a", "b"):
        models.remove(name)
    models.add("huge", 1000, 2.0, evicted=True)
    models.request("a", 10, 3.0)
    assert models.next((), (), 3.0) == ModelSwap("a", ("huge",))


def test_a_busy_model_is_evicted_after_the_patience_and_its_running_jobs():
    models = cache("a", budget=10)
    models.request("b", 10, 5.0)
    assert models.next_deadline() == 15.0
    for running, waiting in (({"a"}, ()), ((), {"a"}), ({"a"}, {"a"})):
        assert models.next(running, waiting, 14.9) is None
        assert models.draining(14.9) == frozenset()
    assert models.draining(15.0) == {"a"}, "no more jobs are started with it"
    assert models.next({"a"}, {"a"}, 15.0) is None, "its running jobs finish first"
    assert models.next((), {"a"}, 15.0) == ModelSwap("b", ("a",))


def test_the_patience_counts_from_the_last_eviction():
    models = cache("a", budget=10)
    models.request("b", 10, 5.0)
    models.request("c", 10, 6.0)
    models.remove("a")
    models.add("b", 10, 20.0, evicted=True)
    models.request("a", 10, 20.0)
    assert models.pending == ("c", "a")
    assert models.next((), {"b"}, 29.0) is None
    assert models.next_deadline() == 30.0
    assert models.next((), {"b"}, 30.0) == ModelSwap("c", ("b",))


def test_a_small_model_passes_a_large_one_until_the_patience_ends():
    models = cache("a", "b")
    models.request("big", 25, 1.0)
    models.request("small", 10, 2.0)
    assert models.next({"a"}, (), 3.0) == ModelSwap("small", ())
    assert models.next({"a"}, (), 11.0) is None, "it would take the memory that the large model needs"
    models.withdraw("big")
    assert models.next({"a"}, (), 11.0) == ModelSwap("small", ())


@pytest.mark.parametrize("patience", [0.0, 10.0])
def test_no_model_starves_under_continuous_requests_for_all(patience):
    """With four busy models and memory for two, each is loaded again after at most three others."""
    models = cache("a", "b", budget=20, patience=patience)
    names, loads, now = ("a", "b", "c", "d"), [], 0.0
    for _ in range(400):
        now += 1.0
        for name in names:
            models.request(name, 10, now)
        running = set(models.names) - models.draining(now)
        for name in sorted(running):
            models.touch(name)
        if (swap := models.next(running, models.names, now)) is not None:
            for name in swap.evict:
                models.remove(name)
            models.add(swap.name, 10, now, evicted=True)
            loads.append(swap.name)
        assert len(models.names) <= 2
    assert len(loads) >= 30
    for name in names:
        places = [place for place, loaded in enumerate(loads) if loaded == name]
        assert max(after - before for before, after in itertools.pairwise(places)) <= 4
