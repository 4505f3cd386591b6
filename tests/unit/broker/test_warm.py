"""Workers that serve several models and have only some of them loaded."""

import pytest

from imagegen_protocol import ProtocolError
from imagegen_protocol.costs import RequestShape
from imagegen_protocol.frames import decode_from_worker, encode
from imagegen_protocol.limits import MAX_MODELS
from imagegen_protocol.messages import WorkerHeartbeat
from tests.unit.broker.bench import Bench
from tests.unit.broker.test_costs import lines_of


def two_workers(strategy="round-robin", capacity=4):
    """Both serve both models; `has-m` has `m` loaded, `has-n` has `n`."""
    bench = Bench(strategy=strategy).past_grace()
    for name in ("has-n", "has-m"):
        about = {"models": ["m", "n"], "warm": [name[-1]], "seconds_per_image": 1.0}
        bench.ready(name, capacity=capacity, **about)
    return bench


@pytest.mark.parametrize("strategy", ["round-robin", "queue-depth", "least-wait"])
def test_a_request_goes_where_its_model_is_loaded(strategy):
    bench = two_workers(strategy)
    wanted = {"m": [], "n": []}
    for number in range(8):
        model = "mnnm"[number % 4]
        wanted[model].append(bench.submit(number, model=model))
    assert bench.works("has-m") == wanted["m"]
    assert bench.works("has-n") == wanted["n"]


@pytest.mark.parametrize("strategy", ["round-robin", "queue-depth"])
def test_what_finds_no_room_there_goes_to_a_cold_worker(strategy):
    bench = two_workers(strategy, capacity=2)
    requests = [bench.submit(number, model="m") for number in range(4)]
    assert bench.works("has-m") == requests[:2]
    assert bench.works("has-n") == requests[2:]


def test_least_wait_has_a_model_loaded_once_that_is_quicker_than_waiting():
    bench = two_workers("least-wait", capacity=100)
    requests = [bench.submit(number, model="m") for number in range(14)]
    assert bench.works("has-m")[:9] == requests[:9]
    assert bench.works("has-n"), "the tenth delays the ninth by a second, and ends as late as after loading"


def test_one_cold_worker_loads_a_model_not_all_of_them():
    bench = two_workers(capacity=2)
    bench.ready("has-n-too", capacity=2, models=["m", "n"], warm=["n"])
    for number in range(4):
        bench.submit(number, model="m")
    assert sorted(len(bench.works(name)) for name in ("has-m", "has-n", "has-n-too")) == [0, 2, 2]


def test_a_heartbeat_tells_what_is_loaded_now():
    bench = two_workers()
    bench.beat("has-n", warm=["m"])
    bench.beat("has-m", warm=["n"])
    request = bench.submit(1, model="m")
    assert bench.works("has-n") == [request]
    shown = {gpu["worker"]: gpu["warm_models"] for gpu in bench.core.statistics(bench.now)["per_gpu_stats"]}
    assert shown == {"has-n": ["m"], "has-m": ["n"]}


def test_who_tells_nothing_has_all_its_models_loaded():
    bench = Bench().past_grace()
    bench.ready("cold", models=["m", "n"], warm=["n"])
    bench.ready("silent", models=["m", "n"])
    request = bench.submit(1, model="m")
    assert bench.works("silent") == [request]
    (silent,) = [g for g in bench.core.statistics(bench.now)["per_gpu_stats"] if g["worker"] == "silent"]
    assert silent["warm_models"] == ["m", "n"]


def test_the_choice_costs_the_same_however_many_workers_there_are():
    def cost(workers):
        bench = Bench().past_grace()
        for index in range(workers):
            bench.ready(f"w{index}", models=["m", "n"], warm=["mn"[index % 2]])
        request = bench.core.table.requests[bench.submit(0, model="m")]
        return lines_of(lambda: bench.core.scheduler.strategy.choose(request, 1, bench.now))

    assert cost(400) == cost(4)


@pytest.mark.parametrize("names", [["m"] * (MAX_MODELS + 1), [""], ["a\nb"]])
def test_lists_of_loaded_models_are_checked(names):
    with pytest.raises(ProtocolError):
        decode_from_worker(encode(WorkerHeartbeat(session=1, warm=names)))


def with_loras(**loaded):
    """Equal workers by name, with the names of their loaded LoRAs."""
    bench = Bench(strategy="least-wait", interval=1000.0).past_grace()
    for name, loras in loaded.items():
        bench.ready(name, capacity=4, seconds_per_image=0.5, loaded_loras=loras, batching="continuous")
    return bench


def test_least_wait_prefers_a_worker_that_has_the_loras_of_a_request():
    bench = with_loras(none=[], both=["a", "b"], one=["a"])
    request = bench.submit(1, shape=RequestShape(loras=["a", "b"]))
    assert bench.works("both") == [request]


def test_least_wait_has_a_lora_loaded_if_that_is_quicker_than_waiting():
    bench = with_loras(none=[], has=["a"])
    requests = [bench.submit(number, shape=RequestShape(loras=["a"])) for number in range(4)]
    assert bench.works("has")[:1] == requests[:1]
    assert bench.works("none")
