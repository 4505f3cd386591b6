"""The order of the tests in parallel processes."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.order import LONG_COMPUTING, LONG_WAITING, longest_first

ROOT = Path(__file__).parents[3]


def ids(*names):
    return [SimpleNamespace(nodeid=name) for name in names]


def parts(items, processes):
    """Return the tests with which each process begins, as xdist distributes them."""
    left, found = [item.nodeid for item in items], []
    for number in range(processes):
        count = len(left) // (processes - number)
        found.append(left[:count])
        del left[:count]
    return found


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_each_process_begins_with_long_tests(processes):
    others = [f"tests/unit/test_{number}.py::test" for number in range(60)]
    computing = [f"{LONG_COMPUTING[0]}[{number}]" for number in range(2 * (processes - 1))]
    items = ids(*others[:30], f"{LONG_WAITING[1]}::test", *computing, f"{LONG_WAITING[0]}::test", *others[30:])
    arranged = longest_first(items, processes)
    first, *rest = parts(arranged, processes)
    assert first[:2] == [f"{LONG_WAITING[0]}::test", f"{LONG_WAITING[1]}::test"]
    for number, part in enumerate(rest):
        assert part[:2] == computing[number :: processes - 1]
    assert [item.nodeid for item in arranged if item.nodeid in others] == others
    assert sorted(map(id, arranged)) == sorted(map(id, items))


@pytest.mark.parametrize("processes", [1, 3])
def test_few_tests_are_all_kept(processes):
    items = ids("a", *(f"{LONG_WAITING[0]}::{number}" for number in range(4)), LONG_COMPUTING[0])
    arranged = longest_first(items, processes)
    assert sorted(item.nodeid for item in arranged) == sorted(item.nodeid for item in items)


def test_long_tests_exist():
    for name in (*LONG_WAITING, *LONG_COMPUTING):
        path, _, function = name.partition("::")
        assert f"def {function}" in (ROOT / path).read_text(), name
