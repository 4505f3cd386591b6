"""The command `imagegen-worker`: options, environment, files and errors."""

import json
import os
import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner

from imagegen_worker.backends import StartError, TemporaryStartError
from imagegen_worker.cli import main
from imagegen_worker.devices.mkl import VARIABLE as MKL_MODE
from imagegen_worker.devices.nvml import list_gpus
from imagegen_worker.supervisor.plan import SUPERVISED
from tests.unit.worker.devices.standin import A, B, Card, StandIn

pytestmark = pytest.mark.usefixtures("clean_logging")


@pytest.fixture
def run(monkeypatch):
    """Return a function that runs the command with a fake daemon; `run.status`: its exit status or error."""
    for name in ("ENABLE_BATCHING", "GPU_IDS", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", SUPERVISED, MKL_MODE):
        monkeypatch.delenv(name, raising=False)

    class Daemon:
        def __init__(self, config):
            run.config = config

        def run(self):
            if isinstance(run.status, Exception):
                raise run.status
            return run.status

    class Supervisor:
        def __init__(self, commands):
            run.commands = commands

        def run(self):
            return run.status

    monkeypatch.setattr("imagegen_worker.daemon.Daemon", Daemon)
    monkeypatch.setattr("imagegen_worker.cli.Supervisor", Supervisor)
    monkeypatch.setattr("imagegen_worker.cli.detect_gpus", lambda: list_gpus(StandIn(*run.cards)))

    def run(*arguments, **environment):
        run.config = run.commands = None
        return CliRunner().invoke(main, ["--backend", "simulated", *arguments], env=environment)

    run.status = 0
    run.cards = ()
    yield run
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", MKL_MODE):
        os.environ.pop(name, None)  # set by the worker for torch


def test_defaults(run):
    assert run().exit_code == 0
    config = run.config
    assert config.brokers == ("tcp://127.0.0.1:5556",)
    assert (config.gpu, config.device, config.effective_batching, config.max_batch_size) == (
        0,
        "auto",
        "static",
        8,
    )
    assert (config.max_batch_wait, config.drain_timeout) == (0.05, 30.0)
    assert config.http_port is config.capacity is config.name is config.model_memory is None
    assert config.models == ()


def test_every_option_sets_its_field(run):
    arguments = (
        "--broker tcp://a:1 --broker tcp://b:2 --gpu 3 --device cpu --model m --max-batch-size 4"
        " --max-batch-wait-time 0.5 --batching off --capacity 7 --name n --http-port 9101 --http-host 0.0.0.0"
        " --drain-timeout 5 --torch-threads 2 --log-level debug --simulated-batch-seconds 1"
        " --simulated-image-seconds 2 --simulated-fail oom:3 --simulated-fail slow:2"
    )
    assert run(*arguments.split()).exit_code == 0
    config = run.config
    assert (config.brokers, config.gpu, config.device) == (("tcp://a:1", "tcp://b:2"), 3, "cpu")
    assert (config.models, config.name, config.capacity) == (("m",), "n", 7)
    assert (config.batching, config.max_batch_size, config.max_batch_wait) == ("off", 4, 0.5)
    assert (config.http_host, config.http_port, config.drain_timeout) == ("0.0.0.0", 9101, 5.0)
    assert (config.torch_threads, config.log_level) == (2, "debug")
    assert (config.simulated_batch_seconds, config.simulated_image_seconds) == (1.0, 2.0)
    assert config.simulated_fail == ("oom:3", "slow:2")


def test_the_environment_variables_of_the_guide(run):
    run(IMAGEGEN_BROKER="tcp://a:1,tcp://b:2", MAX_BATCH_SIZE="5", MAX_BATCH_WAIT_TIME="0.25")
    assert run.config.brokers == ("tcp://a:1", "tcp://b:2")
    assert (run.config.max_batch_size, run.config.max_batch_wait) == (5, 0.25)
    run(IMAGEGEN_BROKER="tcp://a:1 tcp://b:2")
    assert run.config.brokers == ("tcp://a:1", "tcp://b:2")


def test_options_can_be_set_by_prefixed_environment_variables(run):
    run(IMAGEGEN_WORKER_NAME="n", IMAGEGEN_WORKER_BROKER="ipc:///a,b", IMAGEGEN_WORKER_MAX_BATCH_SIZE="3")
    assert (run.config.name, run.config.brokers, run.config.max_batch_size) == ("n", ("ipc:///a,b",), 3)


def test_options_override_the_environment(run):
    run("--max-batch-size", "2", "--broker", "tcp://c:3", MAX_BATCH_SIZE="5", IMAGEGEN_BROKER="tcp://a:1")
    assert (run.config.max_batch_size, run.config.brokers) == (2, ("tcp://c:3",))


@pytest.mark.parametrize("text", ["true", "1", "Yes", "ON", ""])
def test_batching_is_enabled(run, text):
    run(ENABLE_BATCHING=text)
    assert run.config.effective_batching == "static"
    run("--backend", "diffusers", "--device", "cpu", ENABLE_BATCHING=text)
    assert run.config.effective_batching == "continuous"


@pytest.mark.parametrize("text", ["false", "0", "No", "OFF", "False"])
def test_batching_is_disabled(run, text):
    run(ENABLE_BATCHING=text)
    assert run.config.batching == "off"


def test_an_explicit_batching_overrides_enable_batching(run):
    run("--batching", "static", ENABLE_BATCHING="false")
    assert run.config.batching == "static"
    run(ENABLE_BATCHING="true", IMAGEGEN_WORKER_BATCHING="off")
    assert run.config.batching == "off"


DETERMINISTIC = ("--backend", "diffusers", "--deterministic")


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_a_deterministic_worker_on_a_cpu_sets_mkls_reproducible_mode(run, monkeypatch, device):
    monkeypatch.delitem(sys.modules, "torch", raising=False)  # another test may have imported it
    logged = run(*DETERMINISTIC, "--device", device).output
    assert os.environ[MKL_MODE] == "AVX2,STRICT"
    assert "info MKL's reproducible mode was set MKL_CBWR=AVX2,STRICT" in logged


def test_a_mode_of_mkl_in_the_environment_is_kept(run):
    logged = run(*DETERMINISTIC, "--device", "cpu", MKL_CBWR="COMPATIBLE").output
    assert "info MKL's reproducible mode was set by the environment MKL_CBWR=COMPATIBLE" in logged
    assert "AVX2" not in logged


def test_a_mode_of_mkl_that_is_set_after_the_import_of_torch_is_logged(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", object())
    logged = run(*DETERMINISTIC, "--device", "cpu").output
    assert "warning MKL's reproducible mode was set after torch was imported, and may have no effect" in logged


def test_other_workers_do_not_set_a_mode_of_mkl(run):
    run.cards = (Card(A, "One"),)
    for arguments in (("--backend", "diffusers", "--device", "cpu"), (*DETERMINISTIC, "--gpu", "0")):
        assert run(*arguments).exit_code == 0
        assert MKL_MODE not in os.environ


@pytest.fixture
def file(tmp_path):
    """Return a function that writes a settings file and returns the arguments that select it."""

    def write(text):
        (tmp_path / "worker.toml").write_text(text)
        return "--config", str(tmp_path / "worker.toml")

    return write


def test_a_file_sets_options(run, file):
    models = 'model = ["m", "n"]\nmodel_memory = "2GiB"'
    run(*file(f'broker = ["tcp://a:1", "tcp://b:2"]\nmax_batch_size = 3\n{models}\ndrain_timeout = 5'))
    assert (run.config.brokers, run.config.max_batch_size) == (("tcp://a:1", "tcp://b:2"), 3)
    assert (run.config.models, run.config.model_memory) == (("m", "n"), 2 * 2**30)
    assert run.config.drain_timeout == 5.0


def test_the_environment_of_the_guide_overrides_a_file(run, file):
    arguments = file('broker = ["tcp://a:1"]\nmax_batch_size = 3\nmax_batch_wait_time = 1.0')
    run(*arguments, IMAGEGEN_BROKER="tcp://b:2", MAX_BATCH_SIZE="5", MAX_BATCH_WAIT_TIME="0.25")
    assert (run.config.brokers, run.config.max_batch_size) == (("tcp://b:2",), 5)
    assert run.config.max_batch_wait == 0.25
    run(*arguments, "--max-batch-size", "2", MAX_BATCH_SIZE="5")
    assert run.config.max_batch_size == 2


@pytest.mark.parametrize(
    ("configured", "enabled", "batching", "origin"),
    [
        ("static", "false", "off", "environment ENABLE_BATCHING"),
        ("static", "true", "static", "file"),
        ("off", "true", None, "environment ENABLE_BATCHING"),
        ("off", "", "off", "file"),
    ],
)
def test_enable_batching_overrides_a_file(run, file, configured, enabled, batching, origin):
    arguments = file(f'batching = "{configured}"')
    run(*arguments, ENABLE_BATCHING=enabled)
    assert run.config.batching == batching
    lines = run(*arguments, "--check-config", ENABLE_BATCHING=enabled).stdout.splitlines()
    [line] = [line for line in lines if line.startswith("batching")]
    assert f"# {origin}" in line
    run(*arguments, "--batching", "static", ENABLE_BATCHING=enabled)
    assert run.config.batching == "static"


def test_a_flag_of_a_file_can_be_disabled(run, file):
    run(*file("vae_tiling = true"))
    assert run.config.vae_tiling
    run(*file("vae_tiling = true"), "--no-vae-tiling")
    assert not run.config.vae_tiling


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_batch_size = 0", "--max-batch-size must be from 1 to 512, got 0 (max_batch_size: file "),
        ("deterministic = true", "--deterministic needs --batching continuous (deterministic: file "),
        ("max_batch_sise = 1", "worker.toml:1: max_batch_sise is not a setting; did you mean max_batch_size?"),
        ('simulated_fail = ["explode:1"]', "--simulated-fail: expected one of slow:VALUE"),
        ('key = "/no"\nbroker_key = "/no"', "/no"),
    ],
)
def test_check_config_reports_errors_without_starting_a_daemon(run, file, text, words):
    result = run(*file(text), "--check-config")
    assert (result.exit_code, result.stdout, run.config) == (2, "", None)
    assert words in result.stderr.splitlines()[-1]


def test_check_config_prints_valid_settings_without_starting_a_daemon(run, file):
    result = run(*file('gpu = "0,1"'), "--check-config")
    assert (result.exit_code, result.stderr, run.config, run.commands) == (0, "", None, None)
    assert 'backend = "simulated"' in result.stdout


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        ([], {"ENABLE_BATCHING": "maybe"}, "true, 1, yes, on, false, 0, no, off, got 'maybe'"),
        ([], {"MAX_BATCH_SIZE": "many"}, "(environment MAX_BATCH_SIZE): 'many' is not a valid integer"),
        (
            [],
            {"IMAGEGEN_WORKER_COMPILE": "maybe"},
            "(environment IMAGEGEN_WORKER_COMPILE): 'maybe' is not a valid",
        ),
        ([], {"IMAGEGEN_BROKER": "localhost"}, "--broker: expected tcp://host:port"),
        (["--max-batch-size", "0"], {}, "--max-batch-size must be from 1 to 512"),
        (["--max-batch-wait-time", "nan"], {}, "from 0 to 3600"),
        (["--simulated-fail", "explode:1"], {}, "--simulated-fail: expected one of slow:VALUE"),
        (["--simulated-fail", "oom:x"], {}, "'x' is not a number"),
        (["--batching", "dynamic"], {}, "'static', 'off'"),
        (["--device", "tpu"], {}, "'auto', 'cpu', 'cuda'"),
        (["--gpu", "x"], {}, "--gpu must be numbers or UUIDs separated by commas, such as 0,2, got 'x'"),
        ([], {"GPU_IDS": "0;1"}, "got '0;1'"),
        (["--log-level", "loud"], {}, "'info'"),
        (["--backend", "diffusers", "--model", "/no/such"], {}, "model_index.json"),
        (["--name", ""], {}, "--name: expected a name of 1 to 128 UTF-8 characters"),
    ],
)
def test_an_invalid_setting_exits_with_2_and_states_the_allowed_values(run, arguments, environment, words):
    result = run(*arguments, **environment)
    assert result.exit_code == 2
    assert words in result.output.splitlines()[-1]
    assert run.config is None


CARDS = (Card(A, "One"), Card(B, "Two"))


def test_every_gpu_has_a_process(run):
    run.cards = CARDS
    run.status = 78
    assert run("--backend", "diffusers").exit_code == 78
    assert run.config is None
    assert [command.environment["CUDA_VISIBLE_DEVICES"] for command in run.commands] == [A, B]


def test_a_single_selected_gpu_is_used_by_this_process(run):
    run.cards = CARDS
    for gpu in ("1", B):
        assert run("--backend", "diffusers", "--gpu", gpu).exit_code == 0
        assert (run.config.gpu, run.config.gpu_uuid, run.config.gpu_name, run.commands) == (1, B, "Two", None)
        assert (os.environ.pop("CUDA_VISIBLE_DEVICES"), os.environ.pop("CUDA_DEVICE_ORDER")) == (B, "PCI_BUS_ID")


def test_gpu_ids_in_the_environment_selects_gpus(run):
    run(GPU_IDS="0,1,2")
    assert [command.log_fields["gpu"] for command in run.commands] == [0, 1, 2]
    run("--gpu", "3", GPU_IDS="0,1,2")
    assert (run.commands, run.config.gpu) == (None, 3)


def test_a_file_selects_gpus(run, file):
    run(*file('gpu = "1,3"\nname = "n"\nhttp_port = 9101'))
    assert [command.log_fields["worker"] for command in run.commands] == ["n-1", "n-3"]
    assert [command.command[-1] for command in run.commands] == ["9102", "9104"]
    assert "gpu must be a string, got 3" in run(*file("gpu = 3")).output.splitlines()[-1]


def test_a_missing_gpu_exits_with_2_and_lists_the_existing_ones(run):
    run.cards = CARDS
    result = run("--backend", "diffusers", "--gpu", "0,2")
    assert result.exit_code == 2
    assert f"--gpu 0,2: GPU 2 not found; GPUs found: 0 (One, {A}); 1 (Two, {B})" in result.output
    assert run.config is run.commands is None


def test_a_missing_gpu_of_a_supervised_worker_exits_with_69(run):
    assert run("--backend", "diffusers", "--gpu", "0", **{SUPERVISED: "1"}).exit_code == 69
    assert run("--gpu", "0,0", **{SUPERVISED: "1"}).exit_code == 2


def test_without_a_gpu_the_cpu_is_used_with_a_warning(run):
    result = run("--backend", "diffusers")
    assert result.exit_code == 0
    assert "warning no GPU found: the model runs on the CPU" in result.output
    assert run.config.device == "cpu"


def test_the_exit_status_is_that_of_the_daemon(run):
    run.status = 70
    assert run().exit_code == 70


def test_a_start_error_is_the_last_log_line(run):
    for error, status in ((StartError("metrics failed"), 78), (TemporaryStartError("the port is taken"), 1)):
        run.status = error
        result = run("--name", "w")
        assert result.exit_code == status
        assert f"critical {error} worker=w gpu=0" in result.output.splitlines()[-1]


def test_a_port_that_cannot_be_bound_exits_with_1(monkeypatch):
    monkeypatch.undo()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(main, ["--backend", "simulated", "--http-port", str(port)])
    assert result.exit_code == 1
    assert f"--http-port: cannot bind 127.0.0.1:{port}" in result.output.splitlines()[-1]


def test_the_version_is_printed():
    result = CliRunner().invoke(main, ["--version"])
    assert result.exit_code == 0
    assert "version" in result.output


def test_a_simulated_worker_imports_no_heavy_library():
    heavy = [
        "torch",
        "diffusers",
        "transformers",
        "numpy",
        "greenlet",
        "prometheus_client",
        "rich",
        "psutil",
        "pynvml",
    ]
    script = (
        "import sys; import imagegen_worker.cli, imagegen_worker.daemon, imagegen_worker.backends.simulated;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_list_gpus_prints_json_lines(run):
    run.cards = (Card(A, name="H100"), Card(B, name="L4"))
    result = run("--list-gpus")
    assert (result.exit_code, run.config) == (0, None)
    listed = [json.loads(line) for line in result.output.splitlines()]
    assert [(gpu["number"], gpu["uuid"], gpu["name"]) for gpu in listed] == [(0, A, "H100"), (1, B, "L4")]
    assert result.stderr == ""
    hidden = run("--list-gpus", CUDA_VISIBLE_DEVICES="1")
    (left,) = hidden.stdout.splitlines()
    assert hidden.stderr == "CUDA_VISIBLE_DEVICES=1 hides 1 of 2 GPUs\n"
    assert json.loads(left) == {"number": 0, "uuid": B, "name": "L4", "label": "1"}
    run.cards = ()
    none = run("--list-gpus")
    assert (none.exit_code, none.stdout, none.stderr) == (0, "", "no GPU found\n")
