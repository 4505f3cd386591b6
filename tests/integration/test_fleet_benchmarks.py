"""The benchmarks of growth, of scaling and of a day run and tell what they should; on simulated time exactly."""

import itertools
import json
import random

import pytest
from click.testing import CliRunner

from benchmarks.growth import __main__ as growth
from benchmarks.growth.measure import exponent
from benchmarks.scaling import __main__ as scaling
from benchmarks.scaling import ideal, on_simulated_time, traffic
from benchmarks.simulated.clock import Alarm, Clock
from benchmarks.simulated.device import Cost
from benchmarks.thousand import __main__ as thousand
from benchmarks.thousand.day import Day

ONE = scaling.ONE


def run(command, out, *options):
    result = CliRunner().invoke(command, ["--quick", "--out", str(out), *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


# ---- the ideal -------------------------------------------------------------------------------------------


def test_no_other_split_ends_before_the_ideal():
    costs = [ONE, ONE._replace(slow=1.3), ONE._replace(slow=2.5)]
    for count in (1, 7, 8, 9, 20, 33):
        splits = ((a, b, count - a - b) for a in range(count + 1) for b in range(count + 1 - a))
        best = min(max(map(ideal.seconds_for, split, costs)) for split in splits)
        assert ideal.best_makespan(count, costs) == pytest.approx(best)


def test_the_guides_burst_is_two_batches_for_each_of_four():
    assert ideal.best_makespan(50, [Cost()] * 4) == pytest.approx(1.7)


def test_the_lower_bounds_are_below_what_one_machine_does_in_any_order():
    dice = random.Random(4)
    for _ in range(30):
        asked, now = [], 0.0
        for _ in range(5):
            now += dice.expovariate(1.0)
            asked.append(ideal.Asked(now, dice.choice([0.5, 1.0, 3.0]), 0.1))
        means, medians = [], []
        for order in itertools.permutations(asked):
            end, latencies = 0.0, []
            for each in order:
                end = max(end, each.at) + each.work
                latencies.append(end - each.at)
            means.append(sum(latencies) / 5)
            medians.append(sorted(latencies)[2])
        assert ideal.least_mean(asked, 1.0) <= min(means) + 1e-9
        assert ideal.least_quantile(asked, 1.0, 0.6) <= min(medians) + 1e-6


# ---- simulated time --------------------------------------------------------------------------------------


def test_an_alarm_rings_at_the_last_time_that_was_asked_for():
    clock, rung = Clock(), []
    alarm = Alarm(clock, lambda: rung.append(clock.now))
    alarm.set(3.0)
    alarm.set(1.0)
    alarm.set(2.0)
    clock.run()
    assert rung == [2.0]


@pytest.mark.parametrize("workers", [1, 4, 8, 64])
def test_a_burst_on_alike_workers_is_near_the_ideal(workers):
    costs = [ONE] * workers
    took = max(on_simulated_time.run(traffic.burst(50), costs, "round-robin"))
    assert ideal.best_makespan(50, costs) / took >= 0.97


@pytest.mark.parametrize(("strategy", "least"), [("queue-depth", 0.88), ("least-wait", 0.97)])
def test_unlike_workers_reach_their_goals(strategy, least):
    costs = scaling.fleets()["2 × 1.0, 2 × 2.5"]
    took = max(on_simulated_time.run(traffic.burst(200), costs, strategy))
    assert ideal.best_makespan(200, costs) / took >= least


def test_the_same_traffic_gives_the_same_figures():
    asked = traffic.poisson(60, 2.0, seed=2)
    assert on_simulated_time.run(asked, [ONE] * 3, "least-wait") == on_simulated_time.run(
        asked, [ONE] * 3, "least-wait"
    )


# ---- the commands ----------------------------------------------------------------------------------------


def test_growth_tells_of_every_step_and_of_memory(tmp_path):
    told = run(growth.main, tmp_path, "--strategy", "least-wait")
    for word in (*growth.STEPS, "exponent", "heartbeats", "statistics", "memory of a request"):
        assert word in told
    assert len(json.loads((tmp_path / "growth.json").read_text())["found"]) == 3
    assert exponent([1, 10, 100], [2.0, 20.0, 200.0]) == pytest.approx(1.0)
    assert exponent([1, 10, 100], [2.0, 2.0, 2.0]) == pytest.approx(0.0)


def test_scaling_runs_on_simulated_time_and_on_processes(tmp_path):
    told = run(scaling.main, tmp_path, "--scale", "0.02")
    assert "| processes | alike | 2 | 8 | round-robin |" in told
    assert "| processes | 2 × 1.0, 2 × 2.5 | 4 | 32 | least-wait |" in told
    found = json.loads((tmp_path / "scaling.json").read_text())
    assert all(0 < row["share"] <= 1.0 for row in found["bursts"])
    assert all(row[key] >= row["least"][key] for row in found["poisson"] for key in ("mean", "p95", "p99"))


def test_a_day_ends_with_every_answer_whatever_dies(tmp_path):
    told = json.loads(run(thousand.main, tmp_path))
    assert told["answered"] == told["requests"] > 1000
    assert not told["failed"]
    assert told["workers lost"] > 0
    assert sum(told["requeued"].values()) > 0
    assert 0 < told["utilisation"] <= 1


def test_a_days_traffic_is_its_mean_load():
    day = Day(hosts=10, load=0.5)
    assert len(day.arrivals()) == pytest.approx(0.5 * day.per_second() * day.seconds, rel=0.03)
