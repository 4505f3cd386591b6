"""Rendering of `imagegen top` at several widths, and the history of the fleet."""

import json
from concurrent.futures import Future

import pytest
from rich.console import Console

from imagegen_cli.dashboard.charts import load_bar, sparkline
from imagegen_cli.dashboard.screen import screen
from imagegen_client.fleet import BrokerStatus, FleetSnapshot, as_json, images_per_second
from imagegen_client.fleet_watch import TREND_LENGTH, FleetWatch
from imagegen_protocol import BrokerUnreachableError, UnauthorizedError
from tests.statistics import gpu_statistics, statistics_of

HERE = "tcp://127.0.0.1:5555"


def gpu(worker, images=0, **fields):
    return gpu_statistics(**{
        "worker": worker, "host": "render-a", "gpu_id": 0, "pid": 1, "device": "cuda",
        "models": ["org/xl-1.0", "b"], "state": "ready", "current_queue_depth": 12, "capacity": 16, "running": 8,
        "total_requests": 12345, "total_failed": 7, "total_images": images, "avg_batch_size": 5.26,
        "seconds_per_image": 0.3123, "last_heard_seconds": 0.1, **fields,
    })  # fmt: skip


def broker(*gpus, lost_for=None, endpoint=HERE, **fields):
    said = {
        "queued_requests": 24, "answers_per_second": 3.0, "clients": 2, "strategy": "least-wait",
        "uptime_seconds": 90061.0, "per_gpu_stats": list(gpus), **fields,
    }  # fmt: skip
    return BrokerStatus(endpoint, statistics_of(**said), lost_for)


def look(at, *brokers):
    return FleetSnapshot(float(at), brokers)


def drawn(before, now, trends=None, width=200, height=None, hint=""):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    with console.file:
        console.print(screen(before, now, trends or {}, width=width, height=height, hint=hint))
        return console.export_text()


def lines_of(text):
    return [line.rstrip() for line in text.splitlines()]


# ---- the picture -------------------------------------------------------------------------------------------


def test_a_wide_terminal_shows_all_columns():
    before, now = look(0, broker(gpu("g0", 100))), look(4, broker(gpu("g0", 110)))
    title, fleet, total, empty, head, row = lines_of(drawn(before, now, {"g0": [0.0, 1.0, 2.5]}, hint="q exits"))
    assert title.startswith("imagegen top ")
    assert title.endswith(" q exits")
    assert fleet == (
        f"● {HERE}  queued 24 · 3.0 answers/s · estimated wait 8 s · clients 2 · least-wait · up 1d 1:01:01"
    )
    assert total == "  1 GPU · 2.50 images/s ▁▃▇  load 12 of 16 images"
    assert empty == ""
    assert head.split() == [
        "host", "gpu", "worker", "device", "model", "state", "load", "run", "img/s", "trend", "batch", "s/img",
        "requests", "failed",
    ]  # fmt: skip
    assert row.split() == [
        "render-a", "0", "g0", "cuda", "org/xl-1.0", "+1", "●", "ready", "━━━━╍╍┄┄", "12/16", "8", "2.50", "▁▃▇",
        "5.3", "0.312", "12345", "7",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("width", "has", "lacks"),
    [
        (40, ["worker", "state", "load", "img/s"], ["trend", "model", "host"]),
        (80, ["worker", "state", "load", "img/s", "trend", "s/img", "model"], ["host", "requests", "device"]),
        (120, ["host", "gpu", "model", "run", "failed", "trend", "batch"], ["device"]),
        (200, ["device", "requests"], []),
    ],
)
def test_columns_that_do_not_fit_are_left_out(width, has, lacks):
    gpus = [gpu(f"gpu{number}", host="a-host-with-a-long-name.example.org") for number in range(2)]
    text = drawn(look(0, broker(*gpus)), look(2, broker(*gpus)), width=width, hint="q exits")
    lines = lines_of(text)
    assert all(len(line) <= width for line in lines)
    assert set(has) <= set(lines[4].split())
    assert not set(lacks) & set(lines[4].split())
    assert len(lines) == 7, "one line a GPU"
    assert all("12/16" in line for line in lines[5:])


def test_gpus_are_sorted_by_host_and_number():
    gpus = [
        gpu("d", host="b", gpu_id=0), gpu("c", host="a", gpu_id=10), gpu("b", host="a", gpu_id=9),
        gpu("a", host="a", gpu_id=10),
    ]  # fmt: skip
    rows = lines_of(drawn(None, look(0, broker(*gpus))))[5:]
    assert [row.split()[:3] for row in rows] == [
        ["a", "9", "b"],
        ["a", "10", "a"],
        ["a", "10", "c"],
        ["b", "0", "d"],
    ]


def test_gpus_that_do_not_fit_are_left_out():
    gpus = [gpu(f"g{number}", gpu_id=number) for number in range(10)]
    whole = lines_of(drawn(None, look(0, broker(*gpus)), height=15))
    assert len(whole) == 15
    assert whole[-1].split()[2] == "g9"
    lines = lines_of(drawn(None, look(0, broker(*gpus)), height=10))
    assert len(lines) == 10
    assert lines[-1] == "… 6 more GPUs; enlarge the window to see them"
    assert lines[-2].split()[2] == "g3"


def test_a_worker_that_left_is_shown_as_gone():
    text = drawn(look(0, broker(gpu("g0"), gpu("g1"))), look(1, broker(gpu("g0"))))
    assert "1 GPU" in text
    (row,) = [line for line in text.splitlines() if " g1 " in line]
    assert "● gone" in row
    assert "12/16" not in row


def test_an_unreachable_broker_is_shown_and_its_gpus_are_stale():
    text = drawn(None, look(0, broker(gpu("g0"), lost_for=7.2), BrokerStatus("tcp://b:1", None, 3.0)))
    assert f"○ {HERE}  unreachable for 7 s; retrying" in text
    assert "○ tcp://b:1  no answer yet; retrying" in text
    assert "● stale" in text


def test_a_fleet_without_gpus_is_reported():
    assert "no GPU is registered; start one with imagegen-worker" in drawn(None, look(0, broker()))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"queued_requests": 0}, "no wait"),
        ({"answers_per_second": 0.0}, "wait unknown"),
        ({"queued_requests": 1200}, "estimated wait 7 min"),
    ],
)
def test_the_estimated_wait_is_queue_length_over_answer_rate(fields, words):
    assert words in drawn(None, look(0, broker(gpu("g0"), **fields)))


@pytest.mark.parametrize("state", ["draining", "unreachable", "stuck"])
def test_states_are_counted(state):
    text = drawn(None, look(0, broker(gpu("g0", state=state), gpu("g1"))))
    assert "1 not ready" in text
    assert f"● {state}" in text


def test_incomplete_statistics_of_another_version_are_shown():
    assert "a" in drawn(
        None, FleetSnapshot(0.0, (BrokerStatus(HERE, statistics_of(per_gpu_stats=[{"worker": "a"}])),))
    )


def test_names_are_not_interpreted_as_markup():
    assert "[red]x" in drawn(None, look(0, broker(gpu("[red]x"))))


# ---- numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "now", "rate"),
    [
        (gpu("a", 10), gpu("a", 30), 10.0),
        (gpu("a", 10), gpu("a", 10), 0.0),
        (None, gpu("a", 6), 3.0),
        (gpu("a", 10), gpu("a", 4, pid=2), 2.0),
        (gpu("a", 10), gpu("a", 20, pid=2), 10.0),
        (gpu("a", 10), gpu("a", 4), 2.0),
    ],
)
def test_images_per_second_are_derived_from_the_totals(before, now, rate):
    earlier = look(0, broker(*([before] if before else [])))
    assert images_per_second(earlier, look(2, broker(now))) == {"a": rate}


def test_a_single_snapshot_has_no_rate():
    assert images_per_second(None, look(2, broker(gpu("a")))) == {}


def test_the_broker_that_heard_from_a_worker_last_is_used():
    late = broker(gpu("a", 5, last_heard_seconds=2.0), gpu("only-here", last_heard_seconds=9.0))
    fresh = broker(gpu("a", 7, last_heard_seconds=0.5), endpoint="tcp://b:1")
    lost = broker(gpu("a", 1, last_heard_seconds=0.0), gpu("lost", 1), lost_for=3.0, endpoint="tcp://c:1")
    there = look(0, late, fresh, lost)
    assert {name: row["total_images"] for name, row in there.workers().items()} == {
        "a": 7,
        "only-here": 0,
        "lost": 1,
    }
    assert there.stale_workers() == {"lost"}


def test_the_json_output_has_the_same_numbers():
    said = as_json(look(0, broker(gpu("a", 0))), look(4, broker(gpu("a", 10))))
    assert said["images_per_second"] == 2.5
    (row,) = said["gpus"]
    assert (row["worker"], row["images_per_second"]) == ("a", 2.5)
    (one,) = said["brokers"]
    assert (one["endpoint"], one["lost_for_seconds"], one["estimated_wait_seconds"]) == (HERE, None, 8.0)
    assert "per_gpu_stats" not in one


def test_a_wait_that_is_no_number_is_unknown():
    endless = broker(queued_requests=1000, answers_per_second=5e-324)
    assert endless.wait_seconds is None
    json.dumps(as_json(None, look(0, endless)), allow_nan=False)


def test_sparklines():
    assert sparkline([0, 1, 3, 6], 6, 6) == "  ▁▂▄▇"
    assert sparkline([0.001, 9], 9, 2) == "▂▇", "little is more than nothing"
    assert sparkline([0, 0], 0, 2) == "▁▁"
    assert sparkline(range(100), 99, 3) == "▇▇▇"
    assert sparkline([], 0, 3) == "   "


@pytest.mark.parametrize(
    ("running", "depth", "capacity", "bar"),
    [
        (0, 0, 16, "┄┄┄┄┄┄┄┄"),
        (0, 1, 100, "╍┄┄┄┄┄┄┄"),
        (1, 99, 100, "━╍╍╍╍╍╍┄"),
        (8, 8, 8, "━━━━━━━━"),
        (2, 9, 8, "━━╍╍╍╍╍╍"),
        (0, 0, 0, "┄┄┄┄┄┄┄┄"),
    ],
)
def test_load_bars(running, depth, capacity, bar):
    assert load_bar(running, depth, capacity, 8).plain == bar


# ---- again and again ---------------------------------------------------------------------------------------


class Fleet:
    """A broker with the answers that a test sets, or none."""

    def __init__(self):
        self.says = broker(gpu("a"))
        self.now = 0.0
        self.watch = FleetWatch({HERE: self}, lambda: self.now)

    def request_stats(self, patience):
        answer = Future()
        if isinstance(self.says, Exception):
            answer.set_exception(self.says)
        elif self.says is not None:
            answer.set_result(self.says.statistics)
        return answer

    def look(self, after, says):
        self.now += after
        self.says = says
        self.watch.update(self.watch.query(1.0))
        return self.watch


@pytest.mark.parametrize("silence", [BrokerUnreachableError("gone"), None])
def test_an_unreachable_broker_recovers(silence):
    fleet = Fleet()
    assert fleet.look(0, broker(gpu("a", 0))).now.brokers[0].lost_for is None
    watch = fleet.look(2, silence)
    assert watch.now.brokers[0].lost_for == 2.0
    assert "a" in watch.now.workers(), "what was known of it is still shown"
    assert fleet.look(2, silence).now.brokers[0].lost_for == 4.0
    assert not watch.trends
    watch = fleet.look(2, broker(gpu("a", 12)))
    assert watch.now.brokers[0].lost_for is None
    assert list(watch.trends["a"]) == [2.0]


def test_a_rejection_by_a_broker_is_an_error():
    with pytest.raises(UnauthorizedError):
        Fleet().look(0, UnauthorizedError("no"))


def test_rates_cover_a_period_and_trends_are_bounded():
    fleet = Fleet()
    for number in range(100):
        # Batches end in bursts.
        watch = fleet.look(2, broker(gpu("a", 10 * (number // 2))))
    assert watch.before is not None
    assert watch.now.at - watch.before.at == 10.0
    assert len(watch.trends["a"]) == TREND_LENGTH
    assert set(watch.trends["a"]) <= {2.0, 3.0}
    watch = fleet.look(2, broker(gpu("b", 0)))
    assert set(watch.trends) == {"b"}
