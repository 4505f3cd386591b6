"""What things cost, counted in lines of the core that are run: not how long they took."""

import sys

import pytest

from imagegen_broker.server import Snapshot
from imagegen_protocol.messages import Goodbye
from tests.unit.broker.bench import Bench, rid


def lines_of(what):
    """Count the lines that are run in the broker's core while `what` is called."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if "imagegen_broker" not in frame.f_code.co_filename:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        what()
    finally:
        sys.settrace(before)
    return count


def fleet(workers, capacity=8):
    """A bench with a worker `dying` that is full, and others that are full, too."""
    bench = Bench(max_requests=200_000, max_requests_per_client=200_000).past_grace()
    bench.ready("dying", capacity=capacity)
    for number in range(capacity):
        bench.submit(number)
    for index in range(workers):
        taken = [rid(1000 * (index + 1) + number) for number in range(4)]
        bench.ready(f"other {index}", capacity=4, running=taken)
    return bench


@pytest.mark.parametrize("died", [True, False])
def test_the_end_of_a_worker_costs_what_it_had_however_many_others_there_are(died):
    def cost(workers, capacity=8):
        bench = fleet(workers, capacity)
        core, dying = bench.core, bench.core.workers.by_id[b"dying"]
        bench.beat("dying", running=list(dying.assigned))
        lines = lines_of(
            lambda: (core.workers.remove_dead_worker if died else core.workers.remove)(dying, bench.now)
        )
        assert core.scheduler.queue.waiting("m") == capacity
        return lines

    few, many = cost(3), cost(300)
    assert many == few
    assert cost(3, capacity=16) < 2.2 * few


def test_a_goodbye_leaves_nothing_of_what_was_listed():
    bench = fleet(2)
    for name in ("dying", "other 0", "other 1"):
        bench.worker(name, Goodbye())
    assert len(bench.core.table.holders) == 0


def scrape(workers, models, waiting=0):
    """Lines that the loop runs for a scrape, with so many workers, models of each and requests that wait."""
    bench = Bench(max_requests_per_client=1000).past_grace()
    names = [f"model {number}" for number in range(models)]
    for index in range(workers):
        bench.ready(f"w{index}", models=names, capacity=1)
        bench.beat(f"w{index}", warm=names[: models // 2])
    for number in range(workers + waiting):
        bench.submit(number, model=names[number % models])
    return lines_of(lambda: Snapshot.of(bench.core, bench.now))


def test_a_scrape_costs_the_loop_no_more_where_workers_have_many_models():
    assert scrape(workers=8, models=100) == scrape(workers=8, models=1)


def test_a_scrape_costs_the_loop_no_more_where_many_requests_wait():
    assert scrape(workers=8, models=4, waiting=500) == scrape(workers=8, models=4)


def test_a_scrape_costs_the_loop_some_lines_a_worker():
    assert (scrape(workers=40, models=4) - scrape(workers=8, models=4)) / 32 < 30


def test_what_a_view_shows_stays_as_it_was():
    bench = Bench().past_grace()
    bench.ready("w", models=["a", "b"], capacity=4)
    bench.beat("w", warm=["a"])
    bench.submit(1, model="b")
    view = Snapshot.of(bench.core, bench.now)
    before = view.statistics
    assert before["per_gpu_stats"][0]["warm_models"] == ["a", "b"], "b is being loaded for what it was given"
    bench.submit(2, model="a")
    bench.beat("w", warm=["b"], seconds_per_image=1.0)
    bench.worker("w", Goodbye())
    assert bench.core.statistics(bench.now)["num_gpus"] == 0
    assert view.statistics == before
