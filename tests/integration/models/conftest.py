"""Tiny pipelines as folders and in caches of the model hub."""

import json
import shutil

import pytest

from tests.integration.models.recent import PIPELINES

COMMIT = "c0ffee" + "0" * 34


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Save a tiny pipeline by the name of its family, once; return the folder."""
    root = tmp_path_factory.mktemp("families")

    def save(family, **options):
        folder = root / "-".join([family, *options.values()])
        if not folder.exists():
            PIPELINES[family]().save_pretrained(folder, **options)
            small = {"width": 64, "height": 64, "num_inference_steps": 2}
            (folder / "imagegen.json").write_text(json.dumps(small))
        return folder

    return save


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """Return a function that stores a folder in an empty cache of the offline model hub."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def put(folder, model, revision="main"):
        place = cache / f"models--{model.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / revision).write_text(COMMIT)
        return shutil.copytree(folder, place / "snapshots" / COMMIT)

    return put
