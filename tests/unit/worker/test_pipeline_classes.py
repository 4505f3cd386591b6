"""Which pipeline classes and folders are refused, with which message."""

import json

import pytest

diffusers = pytest.importorskip("diffusers")

from imagegen_worker.backends import StartError  # noqa: E402
from imagegen_worker.backends.diffusers.pipeline_classes import (  # noqa: E402
    describe_error,
    missing_package,
    missing_packages,
    refusal,
)
from imagegen_worker.backends.diffusers.validation import component_classes, read_index  # noqa: E402


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("WanPipeline", "WanPipeline generates frames, not images"),
        ("MarigoldDepthPipeline", "MarigoldDepthPipeline generates prediction, uncertainty, latent, not images"),
        ("KandinskyV22PriorPipeline", "generates image_embeds, negative_image_embeds, not images"),
        ("DiTPipeline", "DiTPipeline needs class_labels, which requests can't give"),
        ("FluxControlPipeline", "FluxControlPipeline needs control_image, which requests can't give"),
        ("DiffusionPipeline", "is no pipeline that can be called"),
    ],
)
def test_a_class_that_serves_no_requests_is_refused_by_name(name, reason):
    assert reason in refusal(getattr(diffusers, name))


@pytest.mark.parametrize(
    "name", ["StableDiffusionPipeline", "Kandinsky5T2IPipeline", "KandinskyV22CombinedPipeline", "DDPMPipeline"]
)
def test_other_classes_are_not_refused(name):
    assert refusal(getattr(diffusers, name)) is None


def test_a_folder_of_such_a_class_is_refused_before_its_weights_are_read(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    with pytest.raises(StartError, match="WanPipeline generates frames, not images"):
        read_index(tmp_path)


def test_a_modular_repository_is_refused_by_name(tmp_path):
    (tmp_path / "modular_model_index.json").write_text("{}")
    with pytest.raises(StartError, match=r"a modular pipeline .* is not supported"):
        read_index(tmp_path)


def test_settings_that_are_lists_of_two_numbers_are_no_components():
    index = {"_class_name": "Krea2Pipeline", "text_encoder_select_layers": [1, 2], "vae": ["diffusers", "X"]}
    assert component_classes(index | {"safety_checker": [None, None]}) == {"vae": ("diffusers", "X")}


def _place_holder(*packages):
    return type("NeedsThem", (), {"_backends": list(packages)})


def test_a_place_holder_names_the_packages_that_are_missing(monkeypatch):
    known = {"torch": (lambda: True, ""), "librosa": (lambda: False, ""), "opencv": (lambda: False, "")}
    monkeypatch.setattr("diffusers.utils.import_utils.BACKENDS_MAPPING", known)
    kind = _place_holder("torch", "librosa", "opencv")
    assert missing_packages(kind) == ["librosa", "opencv-python"]
    assert refusal(kind) == (
        "NeedsThem needs the packages librosa, opencv-python: run pip install librosa opencv-python"
    )


@pytest.mark.parametrize(
    ("error", "package"),
    [
        (NameError("name 'ftfy' is not defined", name="ftfy"), "ftfy"),
        (NameError("name 'x' is not defined", name="x"), None),
        (ModuleNotFoundError("No module named 'sentencepiece'", name="sentencepiece"), "sentencepiece"),
        (ImportError("\nQwen2VLImageProcessor requires the Torchvision library but it was not"), "torchvision"),
        (ValueError("requires the patience of a saint"), None),
    ],
)
def test_an_error_because_of_a_missing_package_names_it(error, package):
    assert missing_package(error) == package
    if package is not None:
        assert describe_error(error).endswith(f"(needs the package {package}: run pip install {package})")
