"""`make gpu`: every stage runs on the pretended card, and the report says what happened, whatever happens."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

from click.testing import CliRunner  # noqa: E402

from benchmarks.gpu import __main__ as program  # noqa: E402
from benchmarks.gpu import report  # noqa: E402
from benchmarks.gpu.device import busy_share  # noqa: E402
from benchmarks.gpu.models import REAL  # noqa: E402
from benchmarks.gpu.runner import Runner  # noqa: E402
from benchmarks.gpu.stages import MINUTES, STAGES, Stage  # noqa: E402
from tools import gpu_wheels  # noqa: E402

ROOT = Path(__file__).parent.parent.parent
ABOUT = {
    "device": "a card",
    "memory_gib": 24.0,
    "torch": "2",
    "diffusers": "0",
    "python": "3",
    "commit": "1234",
    "small": True,
}


def passes(bench):
    bench.row("Rows", number=1, share=0.5)
    bench.check("it runs", True)


def fails(bench):
    bench.check("good", True)
    bench.check("bad", False, "3 of 4")


def raises(bench):
    bench.row("Rows", number=2)
    raise RuntimeError("planted | error")


def dies(bench):
    os.kill(os.getpid(), signal.SIGKILL)


def overruns(bench):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    bench.row("Rows", number=3, process=process.pid)
    threading.Event().wait()


def planted(function, limit=60.0):
    return Stage(function.__name__, f"the one that {function.__name__}", f"{__name__}:{function.__name__}", limit)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_stage_that_overruns_raises_or_dies_stops_no_other(tmp_path):
    runner = Runner(tmp_path, small=True, seconds=600, say=print)
    assert runner.describe()["device"] == "Pretended card"
    written = []
    stages = [planted(raises), planted(dies), planted(overruns, 10.0), planted(fails), planted(passes)]
    results = runner.run_all(stages, lambda done: written.append(len(done)))
    assert written == [1, 2, 3, 4, 5]
    outcomes = {result["name"]: (result["outcome"], result["detail"]) for result in results}
    assert outcomes == {
        "raises": ("raised", "RuntimeError: planted | error"),
        "dies": ("died", outcomes["dies"][1]),
        "overruns": ("overran", "ended at its limit of 10 s"),
        "fails": ("failed", "bad: 3 of 4"),
        "passes": ("passed", ""),
    }
    (row,) = results[2]["tables"]["Rows"]
    assert not is_running(row["process"])
    text = report.markdown({"about": ABOUT, "stages": results})
    assert "| the one that raises | **raised**: RuntimeError: planted \\| error |" in text
    assert "| the one that fails | **failed**: bad: 3 of 4 |" in text
    assert "| 1 of 2 |" in text
    assert "| number | process | share |" in text
    assert "| 1 | – | 0.5 |" in text


def test_no_stage_starts_when_the_time_is_used_up(tmp_path):
    runner = Runner(tmp_path, small=True, seconds=0, say=print)
    (result,) = runner.run_all([planted(passes)], lambda done: None)
    assert result["outcome"] == "not started"
    assert result["checks"] == []


@pytest.mark.timeout(1200)
def test_all_stages_run_on_the_pretended_card(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    # Limits of minutes: on a busy machine, tiny models take as long as large ones on a GPU.
    limits = [word for stage in STAGES for word in ("--limit", f"{stage.name}=600")]
    limits += ["--limit", "flux-uniform=0.1"]
    command = [sys.executable, "-m", "benchmarks.gpu", "--small", "--minutes", "20", *limits]
    done = subprocess.run(
        [*command, "--out", str(tmp_path), "--into", str(page)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads((tmp_path / "gpu.json").read_text())
    stages = {stage["name"]: stage for stage in found["stages"]}
    assert list(stages) == [stage.name for stage in STAGES]
    overran = stages.pop("flux-uniform")
    assert (overran["outcome"], overran["detail"]) == ("overran", "ended at its limit of 0.1 s")
    assert {name: stage["outcome"] for name, stage in stages.items()} == dict.fromkeys(stages, "passed"), (
        done.stderr
    )
    assert done.returncode == 1
    assert_rows(stages)
    text = page.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\nPretended card")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text
    assert "| two LoRAs mixed | passed |" in text
    assert (tmp_path / "stages" / "trace-sdxl.json.gz").stat().st_size > 0


def assert_rows(stages):
    tables = {title: rows for stage in stages.values() for title, rows in stage["tables"].items()}
    (memory, *_) = tables["Out of memory on purpose"]
    assert memory["splits"] >= 1
    assert memory["bytes held afterwards"] == 0
    served = [row["served by"] for row in tables["Mixed traffic (steps, prompts, sizes, arrivals)"]]
    assert served == ["continuous", "one by one", "static 0.05 s"]
    for row in tables["Mixed traffic (steps, prompts, sizes, arrivals)"]:
        assert 0 < row["p50 s"] <= row["p99 s"]
    (uniform,) = tables["Uniform bursts, the engine and an offline loop"]
    assert 0 <= uniform["engine idle %"] < 100
    assert uniform["pixels"] <= 2
    (waits,) = tables["Host synchronisations"]
    assert waits["per image"] > 0
    assert waits["more per image with four more steps"] <= 0


def test_the_limits_of_all_stages_fit_into_the_total():
    assert sum(stage.limit for stage in STAGES) <= 60 * MINUTES


def test_without_a_gpu_the_program_says_what_it_needs(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    result = CliRunner().invoke(program.main, ["--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "--small" in result.output


@pytest.mark.parametrize("limit", ["sdxl", "flux2=soon", "none=3"])
def test_an_invalid_limit_is_rejected(limit):
    result = CliRunner().invoke(program.main, ["--limit", limit])
    assert result.exit_code == 2
    assert "expected STAGE=SECONDS" in " ".join(result.output.split())


def test_the_busy_share_of_a_trace_counts_overlapping_kernels_once():
    events = [
        {"cat": "cpu_op", "name": "aten::mm", "ts": 0, "dur": 100},
        {"cat": "kernel", "name": "gemm", "ts": 10, "dur": 20},
        {"cat": "kernel", "name": "add", "ts": 20, "dur": 20},
        {"cat": "gpu_memcpy", "name": "copy", "ts": 50, "dur": 10},
        {"cat": "kernel", "name": "gemm", "ts": 52, "dur": 2},
    ]
    found = busy_share(events)
    assert found["busy"] == pytest.approx(40 / 50)
    assert found["kernels"]["gemm"] == pytest.approx(22e-6)
    assert busy_share(events[:1]) == {"busy": None, "kernels": {}}


def test_a_page_without_marks_is_rejected(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="no place"):
        report.insert({"about": ABOUT, "stages": []}, page)


def test_docs_have_a_place_for_the_tables():
    text = (ROOT / "docs" / "performance.md").read_text()
    assert report.BEGIN in text
    assert report.END in text


def test_every_wheel_has_a_pinned_version():
    wanted = gpu_wheels.requirements((ROOT / "constraints.txt").read_text())
    assert len(wanted) == len(gpu_wheels.PACKAGES)
    assert any(each.startswith("diffusers==") for each in wanted)
    assert not any(each.startswith("torch==") for each in wanted)


def test_the_models_have_their_real_sizes():
    pipelines = {model.name: model.make(torch.device("meta")) for model in REAL}
    weights = {
        name: {
            part: sum(weight.numel() for weight in module.parameters())
            for part, module in pipeline.components.items()
            if isinstance(module, torch.nn.Module)
        }
        for name, pipeline in pipelines.items()
    }
    assert weights["sdxl"] == {
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
        "unet": 2_567_463_684,
    }
    assert weights["flux"] == {
        "vae": 83_819_683,
        "text_encoder": 123_060_480,
        "text_encoder_2": 4_762_310_656,
        "transformer": 11_901_408_320,
    }
    assert {pipeline.dtype for pipeline in pipelines.values()} == {torch.bfloat16}
