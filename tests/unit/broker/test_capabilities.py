"""What models take: kept by worker, put together by model, and told in the statistics."""

from msgspec.structs import replace

from imagegen_broker.core.capabilities import merge, merge_rules
from imagegen_protocol.capabilities import AcceptedParameter, ModelCapabilities, encode_capabilities
from imagegen_protocol.messages import Ready
from tests.unit.broker.bench import Bench

PLAIN = ModelCapabilities(
    width=512, height=512, num_inference_steps=20, size_multiple=16, max_side=1024, tasks={"text-to-image": None}
)


def ready(bench, name, capabilities=None, models=("m",), frames=None):
    """Register a worker that tells of its models."""
    message = Ready(
        worker_id=name.encode().ljust(16, b"\0"),
        name=name,
        host="h",
        gpu_id=0,
        device="cpu",
        backend="test",
        models=list(models),
        capacity=4,
        max_batch_size=2,
    )
    bench.worker(name, message, encode_capabilities(capabilities) if frames is None else frames)


def told(bench):
    return bench.core.statistics(bench.now)["model_traits"]


def test_nothing_is_told_of_workers_that_tell_nothing():
    bench = Bench()
    bench.ready("w")
    assert told(bench) == {}


def test_the_statistics_have_what_a_worker_tells_until_it_is_gone():
    bench = Bench()
    ready(bench, "w", {"m": PLAIN})
    assert told(bench)["m"].width == 512
    assert told(bench)["m"].loras is None
    bench.advance(10.0)
    assert told(bench) == {}


def test_what_a_worker_learns_counts_and_takes_no_request_from_it():
    bench = Bench().past_grace()
    ready(bench, "w", {"a": PLAIN}, models=("a", "b"))
    request = bench.submit(1, model="a")
    ready(bench, "w", {"a": PLAIN, "b": replace(PLAIN, width=64)}, models=("a", "b"))
    assert told(bench)["b"].width == 64
    assert bench.works("w") == [request]


def test_what_it_does_not_serve_or_what_can_not_be_read_is_left_out():
    bench = Bench()
    ready(bench, "w", {"m": PLAIN, "other": PLAIN})
    ready(bench, "x", frames=[b"\xc1"])
    ready(bench, "y", frames=[b"a" * 300_000])
    assert list(told(bench)) == ["m"]
    assert len(bench.core.workers.by_id) == 3


def test_of_several_workers_the_first_has_the_defaults_whoever_came_first():
    for names in (("a", "b"), ("b", "a")):
        bench = Bench()
        for name in names:
            ready(bench, name, {"m": replace(PLAIN, num_inference_steps={"a": 4, "b": 50}[name])})
        assert told(bench)["m"].num_inference_steps == 4


def test_the_widest_bounds_count():
    other = ModelCapabilities(
        width=64,
        height=64,
        num_inference_steps=4,
        guidance_scale=7.5,
        size_multiple=8,
        max_side=2048,
        negative_prompt=True,
        tasks={"text-to-image": None, "image-to-image": 0.8},
        schedulers=["B", "A"],
        loras=["ink"],
    )
    first = replace(PLAIN, schedulers=["A", "C"])
    merged = merge([first, other, replace(PLAIN, loras=["oil", "ink"])])
    assert (merged.width, merged.num_inference_steps) == (512, 20)
    assert (merged.size_multiple, merged.max_side, merged.negative_prompt) == (8, 2048, True)
    assert merged.guidance_scale == 7.5
    assert merged.tasks == other.tasks
    assert merged.schedulers == ["A", "C", "B"]
    assert merged.loras == ["ink", "oil"]


def test_other_parameters_are_merged_by_the_same_rules():
    def telling(**parameters):
        return replace(PLAIN, parameters=parameters)

    one = AcceptedParameter(minimum=0.2, maximum=0.5, choices=["a"])
    two = AcceptedParameter(default=0.4, minimum=0.1, choices=["b", "a"])
    merged = merge([telling(x=one, y=one), telling(x=two), telling(z=two)])
    assert merged.parameters == {
        "x": AcceptedParameter(default=0.4, minimum=0.1, choices=["a", "b"]),
        "y": one,
        "z": two,
    }


def test_capabilities_of_models_that_a_worker_does_not_serve_are_not_kept():
    bench = Bench()
    described = ModelCapabilities(width=8, height=8, num_inference_steps=1, tasks={})
    for number in range(50):
        ready(bench, "w", {f"other {number}": described, "m": described})
    assert list(bench.core.workers.by_id[b"w"].capabilities) == ["m"]


def test_every_field_of_the_capabilities_has_its_rule():
    for struct in (ModelCapabilities, AcceptedParameter):
        assert [name for name, _ in merge_rules(struct)] == list(struct.__struct_fields__)


def test_what_is_told_of_many_models_is_bounded():
    bench = Bench()
    loras = [f"{index:0>128}" for index in range(128)]
    for number in range(40):
        names = [f"m{number:0>3}"]
        ready(bench, f"w{number}", dict.fromkeys(names, replace(PLAIN, loras=loras)), models=names)
    assert list(told(bench)) == [f"m{number:0>3}" for number in range(len(told(bench)))]
    assert 10 < len(told(bench)) < 40
