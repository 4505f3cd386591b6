"""Parsing of `--model`."""

import pytest

from imagegen_worker.models.sources import BUILTIN_FOLDER, HubModel, ModelSource, read_source


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for model in ("sdxl-base", "a=b", "owner/local"):
        (tmp_path / model).mkdir(parents=True)
        (tmp_path / model / "model_index.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for file in ("dream.v8.safetensors", "old.ckpt", "notes.md"):
        (tmp_path / file).write_bytes(b"")
    return tmp_path


def test_a_built_in_model():
    assert read_source("builtin:shapes") == ModelSource("builtin:shapes", BUILTIN_FOLDER / "shapes")
    assert read_source("mine=builtin:shapes").name == "mine"
    with pytest.raises(
        ValueError, match=r"builtin:shape is not a built-in model; built-in models: builtin:shapes"
    ):
        read_source("builtin:shape")
    with pytest.raises(ValueError, match="is not a built-in model"):
        read_source("builtin:../builtin/shapes")


@pytest.mark.parametrize(
    ("text", "name", "path"),
    [
        ("sdxl-base", "sdxl-base", "sdxl-base"),
        ("./sdxl-base/", "sdxl-base", "sdxl-base"),
        ("sdxl-base/../a=b", "a=b", "sdxl-base/../a=b"),
        ("dream.v8.safetensors", "dream.v8", "dream.v8.safetensors"),
        ("dream=dream.v8.safetensors", "dream", "dream.v8.safetensors"),
        ("a=b", "a=b", "a=b"),
        ("c=a=b", "c", "a=b"),
        ("owner/local", "local", "owner/local"),
        ("team/dream=sdxl-base", "team/dream", "sdxl-base"),
    ],
)
def test_a_local_model_has_the_name_of_its_path_unless_one_is_given(text, name, path):
    source = read_source(text)
    assert (source.name, str(source.location)) == (name, path)


def test_the_current_folder_has_its_own_name(folder, monkeypatch):
    monkeypatch.chdir(folder / "sdxl-base")
    assert read_source(".").name == "sdxl-base"


@pytest.mark.parametrize(
    ("text", "name", "place"),
    [
        ("owner/name", "owner/name", HubModel("owner/name")),
        ("Qwen/Qwen-Image_2.1@v1.0/x", "Qwen/Qwen-Image_2.1", HubModel("Qwen/Qwen-Image_2.1", "v1.0/x")),
        ("base=owner/name@main", "base", HubModel("owner/name", "main")),
    ],
)
def test_an_id_that_is_no_local_path_is_a_model_on_the_hub(text, name, place):
    assert read_source(text) == ModelSource(name, place)
    assert str(place) == text.split("=")[-1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sdxl", r"'sdxl' does not exist; expected builtin:shapes, a diffusers folder with a model_index\.json"),
        ("/no/such", "'/no/such' does not exist"),
        ("a/b/c", "'a/b/c' does not exist"),
        ("", "'' does not exist|has no model_index.json"),
        ("x" * 5000, "'xxx"),
        ("empty", r"the folder 'empty' has no model_index\.json"),
        ("models/dream.safetensors", r"'models/dream\.safetensors' does not exist"),
        ("notes.md", r"'notes\.md' is not a \.safetensors file"),
        ("old.ckpt", r"'old\.ckpt': pickle files are not loaded"),
        ("models/there-is-none.bin", "pickle files are not loaded"),
        ("=sdxl-base", "expected NAME=SOURCE"),
        ("base=", "expected NAME=SOURCE"),
        ("https://huggingface.co/owner/name", "'https:/huggingface.co/owner/name' does not exist"),
    ],
)
def test_the_error_for_an_invalid_source_is_one_line(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        read_source(text)
    assert "\n" not in str(caught.value)
