"""What grows is told from what is merely noisy, and nobody is judged by too short a life."""

import random

import pytest

pytest.importorskip("scipy")

from benchmarks.soak import verdict
from benchmarks.soak.samples import Sample

MB = 1_000_000


def life(minutes, uss, fds=lambda at: 20, threads=lambda at: 5, name="worker0", number=0):
    """Samples every 5 s; each quantity is a function of the minutes since the start."""
    return [
        Sample(
            seconds=5.0 * index,
            name=name,
            role="worker",
            number=number,
            pid=1,
            rss=int(uss(index / 12)) + 5 * MB,
            uss=int(uss(index / 12)),
            fds=fds(index / 12),
            threads=threads(index / 12),
            cpu=0.1 * index,
        )
        for index in range(int(minutes * 12))
    ]


def judged(samples):
    [line] = verdict.lines(samples)
    return line


def test_noise_and_spikes_are_flat():
    source = random.Random(1)
    line = judged(life(60, lambda at: 50 * MB + source.uniform(-1, 1) * MB + (source.random() < 0.1) * 40 * MB))
    assert line.judged
    assert line.verdict == "flat"
    assert line.uss == pytest.approx(50, abs=1)


def test_what_fills_at_the_start_is_no_growth():
    assert judged(life(60, lambda at: (30 + 20 * min(at / 10, 1)) * MB)).verdict == "flat"


@pytest.mark.parametrize("an_hour", [2.5, 10])
def test_a_leak_is_told_under_noise(an_hour):
    source = random.Random(2)
    line = judged(life(60, lambda at: 30 * MB + an_hour * MB * at / 60 + source.uniform(-1, 1) * MB))
    assert line.verdict == "grows: memory"
    assert line.slope == pytest.approx(an_hour, rel=0.2)
    assert line.low < line.slope < line.high


def test_of_a_large_process_a_share_is_noise():
    assert judged(life(60, lambda at: (500 + 8 * at / 60) * MB)).verdict == "flat"
    assert judged(life(60, lambda at: (500 + 25 * at / 60) * MB)).verdict == "grows: memory"


def test_descriptors_and_threads_are_judged_too():
    steady = lambda at: 30 * MB  # noqa: E731
    assert judged(life(60, steady, fds=lambda at: 20 + int(at / 6))).verdict == "grows: descriptors"
    assert judged(life(60, steady, threads=lambda at: 5 + int(at / 15))).verdict == "grows: threads"
    assert judged(life(60, steady, fds=lambda at: 20 + int(at) % 3)).verdict == "flat"


def test_a_short_life_is_shown_and_not_judged():
    line = judged(life(8, lambda at: (30 + at) * MB))
    assert not line.judged
    assert line.growing == []
    assert line.verdict == "too short"


def test_each_life_has_a_line_and_the_table_shows_them():
    samples = life(40, lambda at: 30 * MB) + life(5, lambda at: 20 * MB, name="worker1", number=3)
    found = verdict.lines(samples)
    assert [(line.name, line.number, line.verdict) for line in found] == [
        ("worker0", 0, "flat"),
        ("worker1", 3, "too short"),
    ]
    table = "\n".join(verdict.table(found))
    assert "| worker0 | 0 | 40 | 35.0 | 30.0 |" in table
    assert "| worker | 1 | 4.9 | 20.0 | 20.0 |" in table


def test_one_look_is_no_line():
    assert verdict.lines(life(0.1, lambda at: 0)) == []
