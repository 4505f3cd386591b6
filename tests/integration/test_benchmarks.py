"""The benchmarks run, tell what they should, and make the images that the stock pipeline makes. Never how fast."""

import json

import pytest

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

from click.testing import CliRunner  # noqa: E402

from benchmarks.batching import __main__ as engine  # noqa: E402
from benchmarks.batching import overhead, report, traffic  # noqa: E402
from benchmarks.batching.contenders import contenders, run  # noqa: E402
from benchmarks.batching.models import MODELS  # noqa: E402
from imagegen_worker.core.model import Model  # noqa: E402
from tests.equality import PIXEL_TOLERANCE, bits_or, same_image  # noqa: E402

# diffusers' schedulers make numpy arrays of tensors in a way that numpy 2 tells it not to.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MODEL = Model(name="m", num_inference_steps=6, guidance_scale=5.0, width=64, height=64)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    with contenders(MODELS[0].save(tmp_path_factory.mktemp("models")), max_batch_size=4, waits=(0.01,)) as field:
        yield field


def test_traffic_comes_from_its_seed():
    assert traffic.poisson(MODEL, 20, 3.0, seed=1) == traffic.poisson(MODEL, 20, 3.0, seed=1)
    assert traffic.poisson(MODEL, 20, 3.0, seed=1) != traffic.poisson(MODEL, 20, 3.0, seed=2)
    many = traffic.poisson(MODEL, 2000, 4.0)
    assert 2000 / many[-1].at == pytest.approx(4.0, rel=0.1)
    assert len({each.request.prompt for each in many}) > 1990
    assert {each.request.num_inference_steps for each in many} == set(range(4, 10))
    alike = traffic.burst(MODEL, 8, alike=True)
    assert {each.at for each in alike} == {0.0}
    assert len({each.request.batch_key for each in alike}) == 1


def test_traffic_has_the_given_mix():
    mix = traffic.Mix((2, 3), (4.0,), ((64, 64), (32, 96)), words=50)
    requests = [each.request for each in traffic.burst(MODEL, 100, mix=mix)]
    assert {request.num_inference_steps for request in requests} == {2, 3}
    assert {(request.width, request.height) for request in requests} == {(64, 64), (32, 96)}
    assert {len(request.prompt.split()) for request in requests} == {50}
    alike = [each.request for each in traffic.burst(MODEL, 20, alike=True, mix=mix)]
    assert len({request.batch_key for request in alike}) == 1


def test_quantiles_are_of_the_sample():
    assert report.quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert report.quantile([1.0, 2.0, 3.0, 4.0], 0.99) == 4.0
    assert report.quantile([1.0], 0.0) == 1.0


@pytest.mark.parametrize("kind", ["burst", "poisson"])
def test_every_contender_makes_the_same_images(field, kind):
    asked = traffic.burst(field.model, 6) if kind == "burst" else traffic.poisson(field.model, 6, 40.0)
    outcomes = {
        name: run(serve, asked, traffic.burst(field.model, 2, seed=9)) for name, serve in field.contenders.items()
    }
    assert set(outcomes) == {"continuous", "one by one", "static 0.01 s"}
    expected = outcomes["one by one"].images
    for outcome in outcomes.values():
        assert sorted(outcome.images) == sorted(outcome.latencies) == list(range(6))
        assert all(0 < latency <= outcome.seconds for latency in outcome.latencies.values())
        for number, image in outcome.images.items():
            assert same_image(image, expected[number])


def test_alone_the_image_is_the_stock_pipelines_own(field):
    own = overhead.measure(field, 4)
    assert len(own.stock) == len(own.engine) == 4
    assert own.equal == 4 or bits_or(PIXEL_TOLERANCE) > 0


def test_the_engine_benchmark_writes_its_results(tmp_path):
    result = CliRunner().invoke(engine.main, ["--quick", "--out", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0
    about = json.loads((tmp_path / "engine.json").read_text())["models"]["tiny"]
    assert set(about["traffic"]) == {"burst alike", "burst mixed", "poisson 0.7"}
    assert about["overhead"]["pairs"] > 0
    assert about["overhead"]["equal"] == about["overhead"]["pairs"] or bits_or(PIXEL_TOLERANCE) > 0
    for traffic_ in about["traffic"].values():
        assert set(traffic_["ratios"]) == {"continuous", "one by one", "static 0.05 s"}
        assert set(traffic_["ratios"]["continuous"].values()) == {1.0}
        for runs in traffic_["runs"].values():
            assert all(len(each["latencies"]) == 8 for each in runs)
    table = (tmp_path / "engine.md").read_text()
    assert table.count("| continuous | 1.00 |") == 3
    assert ("no plot" in result.output) != (tmp_path / "engine.png").exists()


def test_without_matplotlib_there_is_no_plot(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    files = report.write({"models": {}}, tmp_path)
    assert [file.name for file in files] == ["engine.json", "engine.md"]
