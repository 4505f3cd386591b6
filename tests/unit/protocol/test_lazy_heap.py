"""A heap that drops outdated entries lazily."""

import random

import pytest

from imagegen_protocol.lazy_heap import LazyHeap


def test_outdated_entries_are_passed_over():
    live = {2, 3}
    heap = LazyHeap(live.__contains__)
    for entry in (3, 1, 2):
        heap.push(entry, 10)
    assert heap.first() == 2
    assert len(heap) == 2
    assert heap.pop() == 2
    live.remove(3)
    assert heap.first() is None
    with pytest.raises(IndexError):
        heap.pop()


def test_the_first_entry_can_be_replaced():
    heap = LazyHeap(lambda entry: True)
    for entry in (1, 2, 3):
        heap.push(entry, 10)
    heap.first()
    heap.replace_first(5)
    assert [heap.pop() for _ in range(3)] == [2, 3, 5]


def test_outdated_entries_do_not_pile_up():
    live: set[int] = set()
    heap = LazyHeap(live.__contains__)
    for number in range(1000):
        live.clear()
        live.add(-number)  # each new entry is the smallest, so none is passed over
        heap.push(-number, 64)
        assert len(heap) <= 64
    live.clear()
    heap.trim(8)
    assert len(heap) == 0


def test_it_agrees_with_a_sorted_list():
    random_ = random.Random(1)
    live: set[int] = set()
    heap = LazyHeap(live.__contains__)
    for _ in range(3000):
        entry = random_.randrange(1000)
        if random_.random() < 0.6 and entry not in live:
            live.add(entry)
            heap.push(entry, 64 + 2 * len(live))
        elif live and random_.random() < 0.5:
            live.remove(random_.choice(sorted(live)))
        assert heap.first() == min(live, default=None)
