"""Settings of a worker: defaults, derived values and validation errors."""

import socket

import pytest

from imagegen_common.addresses import ConfigError
from imagegen_worker.config import WorkerConfig


def simulated(**fields):
    return WorkerConfig(**{"backend": "simulated", "name": "w", **fields})


@pytest.fixture
def folder(tmp_path):
    model = tmp_path / "sdxl-base"
    model.mkdir()
    (model / "model_index.json").write_text("{}")
    return model


def test_batch_size_and_capacity_depend_on_batching():
    assert (simulated().batch_size, simulated().effective_capacity) == (8, 16)
    off = simulated(batching="off")
    assert (off.batch_size, off.effective_capacity) == (1, 2)
    assert simulated(capacity=3).effective_capacity == 3


def test_the_default_name_is_host_and_gpu():
    assert simulated(name=None, gpu=3).worker_name == f"{socket.gethostname()}-gpu3"
    assert simulated().worker_name == "w"


def test_the_name_of_a_model_is_that_of_its_folder(folder, monkeypatch):
    assert WorkerConfig(models=(str(folder),)).model_name == "sdxl-base"
    monkeypatch.chdir(folder)
    assert WorkerConfig(models=(".",)).model_name == "sdxl-base"
    assert simulated().model_name == "simulated"
    assert simulated(models=("anything",)).model_name == "anything"


def test_the_built_in_model_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr("imagegen_worker.models.sources.BUILTIN_FOLDER", tmp_path)
    with pytest.raises(ConfigError, match="built-in models: none"):
        WorkerConfig()
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "model_index.json").write_text("{}")
    assert WorkerConfig().model_name == "builtin:shapes"
    assert WorkerConfig().model_source.location == tmp_path / "shapes"
    with pytest.raises(
        ConfigError, match=r"builtin:shape is not a built-in model; built-in models: builtin:shapes"
    ):
        WorkerConfig(models=("builtin:shape",))


@pytest.mark.parametrize(
    "endpoint", ["tcp://127.0.0.1:1", "tcp://[::1]:5556", "tcp://gpu-host.example:65535", "ipc:///run/broker"]
)
def test_valid_endpoints_are_accepted(endpoint):
    assert simulated(brokers=(endpoint,)).brokers == (endpoint,)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"brokers": ()}, "--broker is required, for example tcp://127.0.0.1:5556"),
        ({"brokers": ("tcp://a:1", "tcp://a:1")}, "an endpoint is listed twice: tcp://a:1"),
        *(
            ({"brokers": (endpoint,)}, f"got {endpoint!r}")
            for endpoint in ("", "a:1", "tcp://a", "tcp://a:0", "tcp://a:65536", "tcp://*:5556", "udp://a:1")
        ),
        ({"gpu": -1}, "--gpu must be from 0 to 1023, got -1"),
        ({"max_batch_size": 0}, "--max-batch-size must be from 1 to 512, got 0"),
        ({"max_batch_size": 513}, "--max-batch-size must be from 1 to 512, got 513"),
        ({"max_batch_wait": float("nan")}, "--max-batch-wait-time must be from 0 to 3600, got nan"),
        ({"max_batch_wait": -0.1}, "--max-batch-wait-time must be from 0 to 3600, got -0.1"),
        ({"drain_timeout": float("inf")}, "--drain-timeout must be from 0 to 86400, got inf"),
        ({"capacity": 1025}, "--capacity must be from 1 to 1024, got 1025"),
        ({"http_port": 65536}, "--http-port must be from 0 to 65535, got 65536"),
        ({"http_host": ""}, "--http-host must not be empty"),
        ({"torch_threads": 0}, "--torch-threads must be from 1 to 1024, got 0"),
        ({"simulated_batch_seconds": -1.0}, "--simulated-batch-seconds must be from 0"),
        ({"simulated_image_seconds": -1.0}, "--simulated-image-seconds must be from 0"),
        *(
            ({"name": name}, "--name: expected a name of 1 to 128 UTF-8 characters")
            for name in ("", "a\nb", "n" * 129, "\udce4")
        ),
        ({"models": ("m" * 129,)}, "--model: expected a name of 1 to 128 UTF-8 characters"),
        (
            {"backend": "diffusers", "models": ("/no/such",)},
            "--model: '/no/such' does not exist; expected builtin:shapes, a diffusers folder with a",
        ),
    ],
)
def test_the_error_for_an_invalid_setting_is_one_line(fields, words):
    with pytest.raises(ConfigError) as caught:
        simulated(**fields)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_injected_faults_require_the_simulated_backend(folder):
    with pytest.raises(ConfigError, match="--simulated-fail needs --backend simulated"):
        WorkerConfig(models=(str(folder),), simulated_fail=("oom:1",))


def test_the_lora_folder_must_exist_and_conflicts_with_some_options(folder):
    given = {"models": (str(folder),), "lora_folder": folder}
    assert WorkerConfig(**given).load_options.lora_folder == folder
    with pytest.raises(ConfigError, match="--lora-folder must be an existing folder"):
        WorkerConfig(models=(str(folder),), lora_folder=folder / "model_index.json")
    with pytest.raises(ConfigError, match="--lora-folder needs --backend diffusers"):
        simulated(lora_folder=folder)
    for option in ("compile", "cpu_offload"):
        with pytest.raises(ConfigError, match=f"combined with --{option.replace('_', '-')}"):
            WorkerConfig(**given, batching="static", **{option: True})


def test_offloading_is_not_combined_with_continuous_batching(folder):
    given = {"models": (str(folder),), "cpu_offload": True}
    assert WorkerConfig(**given).effective_batching == "static"
    assert WorkerConfig(**given, batching="off").effective_batching == "off"
    with pytest.raises(ConfigError, match="--cpu-offload cannot be combined with --batching continuous"):
        WorkerConfig(**given, batching="continuous")
