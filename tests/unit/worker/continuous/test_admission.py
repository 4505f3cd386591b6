"""Order in which waiting images are admitted, and the bounded cache."""

from collections import Counter

from imagegen_worker.engines.continuous.admission import AdmissionQueue
from imagegen_worker.engines.continuous.cache import BoundedCache


def test_a_shape_is_first_in_first_out():
    line = AdmissionQueue()
    for number in range(5):
        line.add("512", number)
    assert [line.take(Counter())[1] for _ in range(5)] == [0, 1, 2, 3, 4]
    assert line.take(Counter()) is None


def test_many_images_of_one_shape_do_not_block_another():
    line = AdmissionQueue()
    for number in range(100):
        line.add("512", number)
    line.add("1024", "large")
    assert line.take(Counter({"512": 8})) == ("1024", "large")


def test_shapes_share_slots_and_none_starves():
    line, running = AdmissionQueue(), Counter()
    for number in range(30):
        for shape in ("a", "b", "c"):
            line.add(shape, number)
    for _ in range(9):
        shape, _ = line.take(running)
        running[shape] += 1
    assert running == {"a": 3, "b": 3, "c": 3}


def test_a_returned_item_is_first_of_its_shape():
    line = AdmissionQueue()
    line.add("a", 1)
    line.add("a", 0, first=True)
    line.add("b", 9, first=True)
    assert [line.take(Counter())[1] for _ in range(3)] == [0, 9, 1]


def test_discarded_items_are_not_taken():
    line = AdmissionQueue()
    for number in range(4):
        line.add("a", number)
    line.add("b", 9)
    line.discard({0, 2, 9})
    assert len(line) == 2
    assert [line.take(Counter())[1] for _ in range(2)] == [1, 3]


def test_a_cache_keeps_the_most_recently_used_values_within_its_bytes():
    cache = BoundedCache(100)
    cache.put("a", 1, 40)
    cache.put("b", 2, 40)
    assert cache.get("a") == 1
    cache.put("c", 3, 40)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)
    cache.put("huge", 4, 101)
    assert cache.get("huge") is None
    cache.put("a", 5, 60)
    assert (cache.get("a"), cache.nbytes) == (5, 100)
    assert (cache.hits, cache.misses) == (4, 2)
