"""The status line of a worker in `systemctl status`."""

from imagegen_worker.core.events import CallDone, DrainRequested, Idle, Started
from imagegen_worker.telemetry.status import StatusLine
from tests.unit.worker.bench import Bench


def images_done(images):
    return CallDone(requests=images, images=images, steps=4, seconds=1.0, seconds_per_image=None)


def test_the_line_shows_model_depth_speed_and_brokers():
    bench = Bench(brokers=2, registered=False)
    bench.beat(1)
    line = StatusLine("cuda:0", brokers=2)
    assert line.text(bench.core, bench.now) == ("m on cuda:0, depth 0 (0 running), 0.00 images/s, 1 of 2 brokers")
    bench.work(1, broker=1)
    bench.work(2, broker=1)
    bench.event(Started((1,)))
    bench.event(images_done(5))
    bench.now += 10.0
    assert line.text(bench.core, bench.now) == ("m on cuda:0, depth 2 (1 running), 0.50 images/s, 1 of 2 brokers")


def test_the_speed_covers_the_last_minute():
    bench = Bench()
    line = StatusLine("cpu", brokers=1)
    for _ in range(100):
        text = line.text(bench.core, bench.now)
        bench.event(images_done(10))
        bench.now += 5.0
    assert "2.00 images/s" in text
    for _ in range(13):
        bench.now += 5.0
        text = line.text(bench.core, bench.now)
    assert "0.00 images/s" in text


def test_the_line_of_a_draining_worker_begins_with_its_state():
    bench = Bench()
    bench.work(1)
    bench.event(Started((1,)))
    bench.event(DrainRequested("SIGTERM"))
    assert StatusLine("cpu", brokers=1).text(bench.core, bench.now).startswith("draining, m on cpu, depth 1")


def test_the_step_age_is_none_while_the_device_is_idle():
    bench = Bench()
    assert bench.core.step_age(bench.now) is None
    bench.work(1)
    bench.event(Started((1,)))
    assert bench.core.step_age(bench.now + 2.5) == 2.5
    bench.event(Idle())
    assert bench.core.step_age(bench.now) is None
