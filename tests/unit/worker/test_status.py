"""The line that `systemctl status` shows of a worker."""

from imagegen_worker.core.events import CallDone, DrainRequested, Idle, Started
from imagegen_worker.telemetry.status import StatusLine
from tests.unit.worker.bench import Bench


def made(images):
    return CallDone(requests=images, images=images, steps=4, seconds=1.0, seconds_per_image=None)


def test_it_tells_model_depth_speed_and_brokers():
    bench = Bench(brokers=2, registered=False)
    bench.beat(1)
    line = StatusLine("cuda:0", brokers=2)
    assert line.text(bench.core, bench.now) == ("m on cuda:0, depth 0 (0 running), 0.00 images/s, 1 of 2 brokers")
    bench.work(1, broker=1)
    bench.work(2, broker=1)
    bench.event(Started((1,)))
    bench.event(made(5))
    bench.now += 10.0
    assert line.text(bench.core, bench.now) == ("m on cuda:0, depth 2 (1 running), 0.50 images/s, 1 of 2 brokers")


def test_the_speed_is_that_of_the_last_minute():
    bench = Bench()
    line = StatusLine("cpu", brokers=1)
    for _ in range(100):
        text = line.text(bench.core, bench.now)
        bench.event(made(10))
        bench.now += 5.0
    assert "2.00 images/s" in text
    for _ in range(13):
        bench.now += 5.0
        text = line.text(bench.core, bench.now)
    assert "0.00 images/s" in text


def test_a_worker_that_drains_says_so():
    bench = Bench()
    bench.work(1)
    bench.event(Started((1,)))
    bench.event(DrainRequested("SIGTERM"))
    assert StatusLine("cpu", brokers=1).text(bench.core, bench.now).startswith("draining, m on cpu, depth 1")


def test_the_age_of_a_step_is_known_while_there_is_one():
    bench = Bench()
    assert bench.core.step_age(bench.now) is None
    bench.work(1)
    bench.event(Started((1,)))
    assert bench.core.step_age(bench.now + 2.5) == 2.5
    bench.event(Idle())
    assert bench.core.step_age(bench.now) is None
