"""Command line without a broker: usage errors, interruptions, tables."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from imagegen_cli.commands import generate
from imagegen_cli.commands.completion import PROGRAMS
from imagegen_cli.commands.errors import HOW_TO_START, describe
from imagegen_cli.commands.generate import format_of
from imagegen_cli.main import COMMANDS, main
from imagegen_cli.tables import models_table, stats_table
from imagegen_client.models import served
from imagegen_protocol import BrokerUnreachableError, GenerationFailedError, OutOfMemoryError, OverloadedError
from imagegen_protocol.capabilities import ModelCapabilities
from tests.statistics import statistics_of


def run(*arguments, **settings):
    return CliRunner().invoke(main, arguments, **settings)


# ---- usage -------------------------------------------------------------------------------------------------


def test_help_has_examples_exit_codes_and_every_command():
    said = run("--help").output
    assert "imagegen generate" in said
    assert "130  interrupted" in said
    for name in COMMANDS:
        assert f"\n  {name} " in said
        text = run(name, "--help").output
        assert "Examples:" in text
        assert name in ("keygen", "completion", "up") or "IMAGEGEN_FRONTEND" in text


def test_the_version_is_that_of_the_distribution():
    said = run("--version")
    assert said.exit_code == 0
    assert said.output.startswith("imagegen, version ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dance"], "no such command 'dance'; commands: bench"),
        (["generte"], "no such command 'generte'; did you mean generate?; see imagegen --help"),
        (["generate", "x", "--stepz", "3"], "no such option '--stepz'. (Did you mean"),
        (["generate", "x", "--size", "64by4"], "--size: expected WIDTHxHEIGHT, such as 512x768, got '64by4'"),
        (["generate", "x", "--size", "512x7"], "8 to 8192"),
        (["generate", "x", "--size", "512", "--width", "64"], "leave out --width"),
        (["generate", "x", "-o", "star.jpg", "--format", "png"], "--format: png contradicts --out star.jpg"),
        (["generate", "x", "--pattern", "{seed}.webp", "--format", "png"], "contradicts --pattern {seed}.webp"),
        (["generate"], "missing argument 'PROMPT'"),
        (["generate", "x", "--width", "7"], "8 to 8192"),
        (["generate", "x", "--height", "9000"], "8 to 8192"),
        (["generate", "x", "--steps", "0"], "1 to 1000"),
        (["generate", "x", "--seed", "-1"], "0 to 2^63 - 1"),
        (["generate", "x", "--guidance-scale", "101"], "0 to 100"),
        (["generate", "x", "--num-images", "17"], "1 to 16"),
        (["generate", "x", "--priority", "101"], "-100 to 100"),
        (["generate", "x", "--timeout", "0"], "above 0, at most "),
        (["generate", "x" * 10_001], "prompt: expected `str` of length <= 10000"),
        (["generate", "x", "--lora", "ink:much"], "'ink:much': 'much' is not a number"),
        (["generate", "x", "--lora", "ink:11"], "loras: expected `float` <= 10.0"),
        (["generate", "x", "--lora", "../ink"], "loras: expected `str` matching"),
        (["generate", "x", "--image", "nowhere.png"], "File 'nowhere.png' does not exist"),
        (["generate", "x", "--image", __file__], "image: expected an image, got "),
        (["generate", "x", "--mask", __file__], "mask_image: expected an image, got "),
        (["generate", "x", "--strength", "0"], "above 0, at most 1"),
        (["generate", "x", "--strength", "nan"], "strength"),
        (["generate", "x", "--strength", "0.5"], "strength: expected only with an image"),
        (["generate", "x", "--scheduler", "a.b"], "scheduler: expected `str` matching"),
        (["generate", "x", "--format", "gif"], "'gif' is not one of 'png', 'jpeg', 'webp'"),
        (["generate", "x", "--quality", "0"], "1 to 100"),
        (["generate", "x", "--quality", "50"], "quality: expected none for the output_format 'png'"),
        (["generate", "x", "--extra", "clip_skip"], "'clip_skip': expected NAME=VALUE"),
        (["generate", "x", "--extra", "prompt_2=a cat"], "prompt_2: 'a cat' is not JSON"),
        (["generate", "x", "--extra", "a=1", "--extra", "a=2"], "'a' is given twice"),
        (["generate", "x", "--extra", "a=NaN"], "extra: a: expected nil"),
        (["generate", "x", "--extra", "width=8"], "extra: 'width' is a field of the request itself"),
        (["generate", "x", "--model", ""], "model: expected `str` of length >= 1"),
        (["generate", "x", "--jobs", "0"], "1 to 5000"),
        (["generate", "x", "y", "--preview", "p.png"], "--preview: expected one prompt, got 2"),
        (["generate", "x", "y" * 10_001], "prompt 2: prompt: expected `str` of length <= 10000"),
        (["generate", "--prompts", "missing"], "--prompts: cannot read missing: No such file"),
        (["generate", "--prompts", "."], "--prompts: cannot read .: Is a directory"),
        (["generate", "--prompts", "empty"], "--prompts: empty: expected at least one prompt, got none"),
        (["generate", "--prompts", "latin"], "--prompts: latin:2: expected UTF-8 text"),
        (["generate", "--prompts", "wrong"], "wrong:1: unknown field 'widht'"),
        (["generate", "x", "--pattern", "{name}"], "--pattern: unknown field {name}; expected one of {index}"),
        (["generate", "x", "y", "--pattern", "a.png"], "--pattern: 2 images would be written to a.png"),
        (["generate", "x", "y", "--out", "a.png"], "--out: expected a folder for several prompts"),
        (["generate", "x", "--out", "there.png"], "--out: there.png exists; use --overwrite"),
        (["generate", "x", "--out", "empty/a/"], "--out: empty/a: Not a directory"),
        (["generate", "x", "--out", "a" * 300 + ".png"], "File name too long"),
        (["completion", "tcsh"], "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
        (["top", "--interval", "0"], "0.2 to 3600"),
        (["bench", "--burst", "0"], "1 to 100000"),
        (["bench", "--timeout", "-1"], "above 0, at most "),
        (["stats", "--connect-timeout", "0"], "above 0"),
        (["stats", "--broker", "5555"], "expected tcp://host:port or ipc://path, got '5555'"),
        (["stats", "--broker", "tcp://a:1", "--broker", "tcp://a:99999"], "a port of 1 ... 65535"),
    ],
)
def test_a_usage_error_says_what_is_expected(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    contents = {
        "there.png": b"",
        "empty": b"\n# no\n",
        "latin": b"a\n\xe4",
        "wrong": b'{"prompt": "a", "widht": 1}',
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr("imagegen_cli.commands.generate.open_client", lambda *_, **__: pytest.fail("asked"))
    done = run(*arguments)
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("out", "words"),
    [("missing/a.png", "the folder missing does not exist"), ("a.xyz", "unknown image format")],
)
def test_an_invalid_output_path_is_an_error_before_anything_is_sent(tmp_path, monkeypatch, out, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("imagegen_cli.commands.generate.open_client", lambda *_, **__: pytest.fail("asked"))
    done = run("generate", "x", "--out", out)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: --out: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1, "one line"


def test_a_read_only_folder_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    done = run("generate", "x", "--seed", "5")
    assert done.exit_code == 2
    assert done.stderr == "error: --out: the folder . is not writable\n"


@pytest.mark.parametrize(
    ("size", "expected"), [("512x768", (512, 768)), ("64X32", (64, 32)), ("64×32", (64, 32)), ("512", (512, 512))]
)
def test_a_size_sets_width_and_height(monkeypatch, tmp_path, size, expected):
    submitted = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        generate, "run_requests", lambda client, requests, *_, **__: submitted.extend(requests) or []
    )
    assert run("generate", "x", "--size", size, "-n", "2", "-o", "out.webp").exit_code == 0
    options = submitted[0].options
    assert (options["width"], options["height"]) == expected
    assert (options["num_images"], options["output_format"]) == (2, "webp")


@pytest.mark.parametrize(
    ("name", "format_"),
    [
        (None, None),
        ("a.png", "png"),
        ("b/a.JPG", "jpeg"),
        ("{seed}.jpeg", "jpeg"),
        ("a.webp", "webp"),
        ("a.tiff", None),
        ("a/", None),
    ],
)
def test_the_suffix_sets_the_format(name, format_):
    assert format_of(name) == format_


# ---- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (BrokerUnreachableError("nobody"), 3, f"error: broker_unreachable: nobody{HOW_TO_START}\n"),
        (OutOfMemoryError("too\n  big"), 1, "error: out_of_memory: too big\n"),
        (OverloadedError("full", retry_after_seconds=2.5), 1, "error: overloaded: full (retry after 2.5 s)\n"),
        (KeyboardInterrupt(), 130, "error: interrupted; unfinished requests were cancelled\n"),
    ],
)
def test_each_error_prints_a_line_and_sets_the_exit_status(monkeypatch, error, status, line):
    def fail(*_):
        raise error

    monkeypatch.setattr("imagegen_cli.commands.stats.open_client", fail)
    done = run("stats")
    assert (done.exit_code, done.stdout, done.stderr) == (status, "", line)


def test_an_error_is_one_line():
    assert "\n" not in describe(GenerationFailedError("a\nb\n"))


def test_starting_imports_nothing_heavy():
    script = (
        "import sys, click.testing, imagegen_cli.main as cli\n"
        "click.testing.CliRunner().invoke(cli.main, ['--help'])\n"
        "print([name for name in ('torch', 'numpy', 'rich', 'PIL', 'diffusers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ---- tables ------------------------------------------------------------------------------------------------


def full_gpu(worker, **fields):
    return {
        "gpu_id": 0, "worker": worker, "host": "render-host-01.example.org", "models": ["org/diffusion-xl-1.0"],
        "state": "ready", "current_queue_depth": 12, "capacity": 16, "total_requests": 123456,
        "total_batches": 23456, "avg_batch_size": 5.26, "total_images": 123456, "seconds_per_image": 0.8123,
        **fields,
    }  # fmt: skip


def a_fleet(*gpus):
    totals = {
        "accepted": 90, "answered": {"result": 80, "cancelled": 3}, "rejected": {"overloaded": 7},
        "requeued": {"lost": 2}, "workers_lost": 1,
    }  # fmt: skip
    return statistics_of(
        strategy="least-wait", num_gpus=len(gpus), queued_requests=4, clients=2,
        requests={"dispatched": 3}, uptime_seconds=90061.5, totals=totals, per_gpu_stats=list(gpus),
    )  # fmt: skip


def drawn(width, statistics, table=stats_table):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    with console.file:
        console.print(table(statistics))
        return console.export_text()


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_width_and_shows_all_numbers(width):
    text = drawn(width, a_fleet(full_gpu("gpu0"), full_gpu("gpu1", state="unreachable", seconds_per_image=None)))
    lines = text.splitlines()
    assert all(len(line.rstrip()) <= width for line in lines)
    rows = [line for line in lines if line.startswith("gpu")]
    assert len(rows) == 2, "one line a GPU"
    for piece in ("ready", "12/16", "123456", "23456", "5.3", "0.812"):
        assert piece in rows[0]
    assert "unreachable" in rows[1]
    assert rows[1].rstrip().endswith("-")
    for piece in (
        "least-wait",
        "queued 4",
        "at workers 3",
        "1d 1:01:01",
        "results 80",
        "cancelled 3",
        "rejected 7",
    ):
        assert piece in " ".join(text.split())


def test_a_fleet_without_gpus_is_reported():
    assert "no GPU is registered" in drawn(80, a_fleet())


def test_names_are_not_interpreted_as_markup():
    text = drawn(120, a_fleet(full_gpu("[red]x", models=["[/]", "b", "c"])))
    assert "[red]x" in text
    assert "[/] +2" in text


def test_incomplete_statistics_of_another_version_are_shown():
    assert "unknown" in drawn(120, statistics_of(per_gpu_stats=[{"worker": "a"}]))


# ---- models ------------------------------------------------------------------------------------------------


def models_of(*gpus, **fields):
    return served(statistics_of(per_gpu_stats=list(gpus), **fields))


def test_models_list_their_workers_with_the_default_first():
    gpus = [
        full_gpu("a", models=["x", "y"], warm_models=["x"]),
        full_gpu("b", models=["y"], state="draining"),
    ]
    traits = {"y": ModelCapabilities(width=512, height=768, num_inference_steps=20, tasks={"text-to-image": None})}
    models = models_of(*gpus, default_model="y", models=["x", "y"], model_traits=traits)
    assert [model["takes"] for model in models] == [msgspec.to_builtins(traits["y"]), None]
    assert [(model["model"], model["default"]) for model in models] == [("y", True), ("x", False)]
    assert [(worker["worker"], worker["warm"]) for worker in models[0]["workers"]] == [("a", False), ("b", False)]
    assert models[1]["workers"] == [
        {"worker": "a", "host": "render-host-01.example.org", "gpu_id": 0, "state": "ready", "warm": True}
    ]
    text = drawn(80, models, models_table)
    rows = [line.split() for line in text.splitlines()[2:]]
    assert rows == [
        ["y", "(default)", "512x768", "20", "1/2", "0", "a,", "b", "draining"],
        ["x", "-", "-", "1/1", "1", "a"],
    ]


def test_a_default_model_without_workers_and_an_empty_list_are_shown():
    models = models_of(default_model="gone", models=[])
    assert models == [{"model": "gone", "default": True, "workers": [], "takes": None}]
    assert "none" in drawn(80, models, models_table)
    assert "no models; start a worker" in drawn(80, models_of(default_model=None), models_table)


# ---- completion --------------------------------------------------------------------------------------------


def complete(program, *words):
    """Return the completions of the last word."""
    environment = {
        "COMP_WORDS": " ".join((program, *words)),
        "COMP_CWORD": str(len(words)),
        f"_{program.replace('-', '_').upper()}_COMPLETE": "bash_complete",
    }
    done = subprocess.run(
        [Path(sys.executable).with_name(program)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return [line.removeprefix("plain,") for line in done.stdout.split()]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("imagegen", "ge"), ["generate"]),
        (("imagegen", "generate", "--pr"), ["--prompts", "--preview", "--priority"]),
        (("imagegen", "completion", "z"), ["zsh"]),
        (("imagegen", "generate", "--broker", "nonsense", "--model", ""), []),
        (("imagegen-broker", "--str"), ["--strategy"]),
        (("imagegen-worker", "--device", "c"), ["cpu", "cuda"]),
        (("imagegen-gateway", "--auth", "k"), ["keys"]),
    ],
)
def test_a_shell_completes(words, expected):
    assert complete(*words) == expected


def test_the_script_for_bash_completes_in_bash():
    script = (
        'eval "$(imagegen completion bash)"; COMP_WORDS=(imagegen gen); COMP_CWORD=1; '
        '_imagegen_completion imagegen; echo "${COMPREPLY[@]}"'
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    bash = ["bash", "--norc", "-c", script]
    done = subprocess.run(bash, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["generate"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_shell_has_a_script_for_every_program(shell, program):
    said = run("completion", shell, program).output
    assert f"_{program.replace('-', '_').upper()}_COMPLETE={shell}_complete" in said
    assert program in said


# ---- keys --------------------------------------------------------------------------------------------------


def test_keygen_writes_a_pair_and_prints_the_paths(tmp_path):
    said = run("keygen", "alice", "--out", str(tmp_path / "keys"))
    assert said.exit_code == 0
    assert said.output.split() == [str(tmp_path / "keys" / name) for name in ("alice.key", "alice.key_secret")]
    again = run("keygen", "alice", "--out", str(tmp_path / "keys"))
    assert again.exit_code == 1
    assert "exists already" in again.output


@pytest.mark.parametrize("name", ["", "../alice", ".hidden", "a/b"])
def test_keygen_rejects_names_with_a_folder(name):
    said = run("keygen", name)
    assert said.exit_code == 2
    assert "expected a file name without a folder" in said.output


def test_client_keys_have_their_own_environment_variables():
    said = run("stats", env={"IMAGEGEN_CLIENT_KEY": "missing", "IMAGEGEN_CLIENT_BROKER_KEY": "missing"})
    assert (said.exit_code, "can't read the key file" in said.output) == (2, True)
    # What a broker on the same machine is told of its own key.
    broker = {"IMAGEGEN_BROKER_KEY": "missing", "IMAGEGEN_FRONTEND": "tcp://127.0.0.1:1"}
    assert run("stats", "--connect-timeout", "0.1", env=broker).exit_code == 3


def test_an_incomplete_pair_of_key_options_is_an_error(tmp_path):
    said = run("stats", "--key", str(tmp_path / "a.key_secret"))
    assert said.exit_code == 2
    assert "go together" in said.output
    said = run("stats", "--key", str(tmp_path / "a"), "--broker-key", str(tmp_path / "b"))
    assert said.exit_code == 2
    assert "can't read the key file" in said.output
