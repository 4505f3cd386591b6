"""`imagegen generate` with many prompts, `models` and `top` in a pipe, against a real broker."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner

from imagegen_cli.main import main
from imagegen_client import Client
from tests.integration.client.peers import NOWHERE, PATIENCE, wait_for_end
from tests.integration.client.test_cli import wait_for_gpus


@pytest.fixture
def imagegen(broker, tmp_path, monkeypatch):
    """Run the command in its own folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, stdin=None):
        words = [*arguments, "--broker", broker.frontend_endpoint]
        return CliRunner().invoke(main, words, input=stdin)

    return run


def files(folder="."):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def test_many_prompts_are_written_to_a_folder(imagegen, worker, tmp_path):
    (tmp_path / "p.txt").write_text(
        '# three more\nb\n\n{"prompt": "c", "num_images": 2}\n{"prompt": "d", "seed": 99}\n'
    )
    done = imagegen(
        "generate", "A, first!", "--prompts", "p.txt", "--out", "new/pictures", "--seed", "5",
        "--pattern", "{index:02}-{prompt}-{seed}-{worker}.png",
    )  # fmt: skip
    assert (done.exit_code, done.stderr) == (0, "")
    drawn = ["00-a-first-5-raw.png", "01-b-6-raw.png", "02-c-7-raw.png", "02-c-8-raw.png", "03-d-99-raw.png"]
    assert files("new/pictures") == drawn
    lines = done.stdout.splitlines()
    assert sorted(line for line in lines if line.startswith("new")) == [f"new/pictures/{name}" for name in drawn]
    seeds = [match[1] for line in lines if (match := re.fullmatch(r"seed=(\d+) worker=raw seconds=[\d.]+", line))]
    assert sorted(seeds, key=int) == ["5", "6", "7", "99"]
    assert sorted(worker.begun) == ["A, first!", "b", "c", "d"]


def test_random_seeds_are_exact_for_readers_of_doubles(imagegen, worker):
    done = imagegen("generate", "a", "b", "--num-images", "2", "--json")
    seeds = sorted(seed for line in done.stdout.splitlines() for seed in json.loads(line)["seeds"])
    assert seeds == list(range(seeds[0], seeds[0] + 4))
    assert seeds[-1] < 2**53


def test_a_failing_prompt_does_not_stop_the_others(imagegen, worker):
    done = imagegen("generate", "a", "fail one", "b", "fail two", "--out", "out/")
    assert done.exit_code == 1
    assert sorted(done.stderr.splitlines()) == [
        "error: generation_failed: prompt 2: it broke",
        "error: generation_failed: prompt 4: it broke",
    ]
    assert len(files("out")) == 2


def test_json_prints_one_object_per_prompt(imagegen, worker):
    done = imagegen("generate", "--prompts", "-", "--json", "--seed", "5", stdin="a\nfail\n")
    assert done.exit_code == 1
    good, bad = sorted((json.loads(line) for line in done.stdout.splitlines()), key=lambda said: said["index"])
    assert good.pop("seconds") > 0
    ids = good.pop("request_id"), bad.pop("request_id")
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)
    assert ids[0] != ids[1]
    assert good == {
        "index": 0, "prompt": "a", "seed": 5, "files": ["imagegen-5.png"], "seeds": [5], "worker": "raw",
        "model": "raw-model", "batch_size": 1, "attempt": 1, "parameters": {},
    }  # fmt: skip
    error = {"code": "generation_failed", "message": "it broke"}
    assert bad == {"index": 1, "prompt": "fail", "seed": 6, "error": error}
    assert done.stderr == "error: generation_failed: stdin:2: it broke\n"


def test_warnings_of_results_are_printed_with_the_prompt_that_they_belong_to(imagegen, worker):
    done = imagegen("generate", "a", "warn", "--out", "out/")
    assert (done.exit_code, done.stderr) == (0, "warning: prompt 2: prompt: too long\n")
    done = imagegen("generate", "warn", "--json", "--out", "warned.png")
    assert json.loads(done.stdout)["warnings"] == ["prompt: too\nlong"]


def test_quiet_prints_only_the_paths(imagegen, worker):
    done = imagegen("generate", "a", "-q", "--seed", "5")
    assert (done.stdout, done.stderr) == ("imagegen-5.png\n", "")


def test_the_number_of_unfinished_requests_is_limited(imagegen, worker):
    prompts = [f"hold {number}" for number in range(30)]
    done = []
    thread = Thread(target=lambda: done.append(imagegen("generate", *prompts, "--jobs", "3")))
    thread.start()
    worker.wait_for_work(3)
    worker.let_go.set()
    wait_for_end(thread)
    assert done[0].exit_code == 0
    assert len(files()) == 30
    assert worker.most_held == 3


def test_skip_existing_generates_only_missing_files(imagegen, worker):
    first = ("generate", "a", "b", "c", "--pattern", "{index}.png")
    assert imagegen(*first).exit_code == 0
    again = imagegen(*first)
    assert again.exit_code == 2
    assert again.stderr == "error: --pattern: 0.png exists; use --overwrite or --skip-existing\n"
    Path("1.png").unlink()
    done = imagegen(*first, "--skip-existing")
    assert (done.exit_code, done.stderr) == (0, "skipped 2 of 3 prompts: their files exist\n")
    assert worker.begun.count("b") == 2
    assert imagegen(*first, "--skip-existing").stdout == ""
    assert imagegen(*first, "--overwrite").exit_code == 0
    assert [worker.begun.count(prompt) for prompt in "abc"] == [2, 3, 2]


def test_a_file_that_cannot_be_written_is_an_error_of_its_prompt(imagegen, worker):
    # Where a folder of the pattern should be, there is a file.
    Path("raw").write_text("")
    done = imagegen("generate", "a", "b", "--pattern", "{worker}/{index}.png", "--seed", "5")
    assert done.exit_code == 1
    lines = sorted(done.stderr.splitlines())
    assert [line.split(": ")[:3] for line in lines] == [["error", "not_written", f"prompt {at}"] for at in (1, 2)]
    assert lines[0].endswith("(seed 5, worker raw)")
    assert files() == ["raw"]


def test_the_error_for_an_unknown_model_lists_the_served_ones(broker, imagegen, worker):
    with Client(broker.frontend_endpoint) as client:
        wait_for_gpus(client, 1)
    done = imagegen("generate", "a", "b", "--model", "another")
    assert done.exit_code == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert all("'another'; served are: raw-model" in line for line in lines)


def test_an_unreachable_broker_is_one_error_for_all_prompts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["generate", *"abcdef", "--broker", NOWHERE, "--connect-timeout", "0.1"])
    assert done.exit_code == 3
    assert done.stderr.count("\n") == 1
    assert "start a fleet on this machine with imagegen up" in done.stderr


def test_ctrl_c_cancels_unfinished_requests(broker, worker, tmp_path):
    program = str(Path(sys.executable).with_name("imagegen"))
    words = [program, "generate", "a", "hold 1", "hold 2", "--out", "out/", "--broker", broker.frontend_endpoint]
    process = subprocess.Popen(
        words,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    worker.wait_for_work(3)
    assert process.stdout.readline().startswith("out/imagegen-"), "what is there is written"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said) == (130, "error: interrupted; unfinished requests were cancelled\n")
    worker.wait_for_idleness()
    assert len(files(tmp_path / "out")) == 1


# ---- the others --------------------------------------------------------------------------------------------


@pytest.fixture
def known(broker, worker):
    """Wait until the worker is registered."""
    with Client(broker.frontend_endpoint) as client:
        wait_for_gpus(client, 1)


def test_models_are_listed(imagegen, known):
    assert "raw-model (default)" in imagegen("models").stdout
    (model,) = json.loads(imagegen("models", "--json").stdout)
    assert (model["model"], model["default"]) == ("raw-model", True)
    assert [worker["worker"] for worker in model["workers"]] == ["raw"]


def test_top_prints_one_table_in_a_pipe(imagegen, known, broker):
    done = imagegen("top", "--interval", "0.2")
    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "imagegen top"
    assert lines[1].startswith(f"● {broker.frontend_endpoint}  queued 0 · ")
    assert "requests" in lines[-2]
    assert lines[-1].split()[:4] == ["here", "0", "raw", "cpu"]
    assert "\x1b" not in done.stdout


def test_top_prints_json(imagegen, known):
    said = json.loads(imagegen("top", "--json", "--interval", "0.2").stdout)
    assert [gpu["worker"] for gpu in said["gpus"]] == ["raw"]
    assert said["gpus"][0]["images_per_second"] == 0.0


def test_top_shows_an_unreachable_second_broker(imagegen, known):
    done = imagegen("top", "--interval", "0.2", "--broker", NOWHERE)
    assert done.exit_code == 0
    assert f"○ {NOWHERE}  no answer yet; retrying" in done.stdout
    assert " raw " in done.stdout


def test_top_needs_a_reachable_broker():
    done = CliRunner().invoke(main, ["top", "--broker", NOWHERE, "--connect-timeout", "0.1"])
    assert done.exit_code == 3
    assert done.stderr.startswith(
        f"error: broker_unreachable: no broker answered at {NOWHERE} within 0.1 s; start"
    )
