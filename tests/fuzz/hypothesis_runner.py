"""The runner with hypothesis: seeds, changed in a few places, and arbitrary bytes."""

import time
from collections.abc import Callable

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.findings import Findings, run_once
from tests.fuzz.target import Target

_TOKENS = (
    b"\x00",
    b"\xff" * 4,
    b"\x80",
    b"\n",
    b'"',
    b"[" * 200,
    b"9" * 5000,
    b"-1",
    b"1e999",
    b"\xed\xa0\x80",
    b"\xc1",
)


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Return a strategy for the inputs of a target."""
    if target.is_script:
        return st.one_of(st.binary(max_size=60), st.binary(min_size=100, max_size=1500), changed(target.seeds))
    arbitrary = st.binary(max_size=200)
    return st.one_of(arbitrary, changed(target.seeds), changed(target.seeds)) if target.seeds else arbitrary


@st.composite
def changed(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """Draw a seed in which a few ranges are replaced."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.sampled_from((0, 1, 1, 1, 2, 4, 16, 1000))))
        data[start:stop] = draw(st.one_of(st.binary(max_size=4), st.sampled_from(_TOKENS), st.sampled_from(seeds)))
    return bytes(data)


def check(target: Target, examples: int, *, shrink: bool = True) -> None:
    """Run the regressions, the seeds and a fixed number of inputs; raise what a failing one raises.

    The inputs are the same in each run. `shrink`: search for the smallest failing one.
    """
    for path in target.regressions:
        run_once(target.run, path.read_bytes())
    for data in (b"", *target.seeds):
        run_once(target.run, data)

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
    )
    @given(inputs(target))
    def run(data: bytes) -> None:
        run_once(target.run, data)

    run()


def fuzz(target: Target, seconds: float, findings: Findings, batch: int = 200) -> None:
    """Run inputs, other ones in each call, until the time is over; collect the findings."""
    end = time.monotonic() + seconds
    number = time.time_ns()
    _collect(target, findings)
    while time.monotonic() < end:
        number += 1
        _batch(target, findings, batch, number)


def _collect(target: Target, findings: Findings) -> None:
    for data in (b"", *target.seeds, *(path.read_bytes() for path in target.regressions)):
        findings.run(target.run, data)


def _batch(target: Target, findings: Findings, size: int, number: int) -> None:
    @seed(number)
    @settings(
        max_examples=size,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
    )
    @given(inputs(target))
    def run(data: bytes) -> None:
        findings.run(target.run, data)

    run()


Runner = Callable[[Target, float, Findings], None]
