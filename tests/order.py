"""The order in which parallel test processes run the tests: the longest first, so that none starts last.

With `--dist worksteal`, each process begins with one contiguous part of the tests, in their order. A process
without tests takes some from the end of another part.
"""

from collections.abc import Sequence
from typing import Any

LONG_WAITING = (
    "tests/e2e/test_slow_links.py",
    "tests/e2e/test_chaos.py",
    "tests/e2e/test_soak.py",
    "tests/e2e/test_systemd.py",
    "tests/e2e/test_network.py",
    "tests/e2e/test_growing_old.py",
    "tests/e2e/test_failures.py",
    "tests/e2e/gateway/test_attack.py",
    "tests/e2e/gateway/test_connections.py",
)
"""Long tests that mostly wait, for links and timeouts. One process runs them while others compute."""
LONG_COMPUTING = (
    "tests/integration/test_gpu_benchmark.py::test_all_stages_run_on_the_pretended_card",
    "tests/e2e/test_all_benchmarks.py",
    "tests/pipelines/test_table.py::test_a_measured_row_is_still_true",
    "tests/integration/models/test_arithmetic.py",
    "tests/simulation/test_fleets.py",
)
"""Long tests that use a CPU core."""


def longest_first(items: Sequence[Any], processes: int) -> list[Any]:
    """Return the tests in an order in which each of the processes begins with long ones.

    The first process begins with those that wait; the others share those that compute.
    """
    waiting = _matching(items, LONG_WAITING)
    computing = _matching(items, LONG_COMPUTING)
    long = set(map(id, [*waiting, *computing]))
    others = [item for item in items if id(item) not in long]
    heads: list[list[Any]] = [[] for _ in range(processes)]
    heads[0] += waiting
    for number, item in enumerate(computing):
        heads[1 + number % (processes - 1) if processes > 1 else 0].append(item)
    arranged: list[Any] = []
    for number, head in enumerate(heads):
        size = (len(items) - len(arranged)) // (processes - number)  # as xdist divides them
        count = max(0, size - len(head))
        arranged += [*head, *others[:count]]
        del others[:count]
    return arranged + others


def _matching(items: Sequence[Any], prefixes: Sequence[str]) -> list[Any]:
    return [item for prefix in prefixes for item in items if item.nodeid.startswith(prefix)]
