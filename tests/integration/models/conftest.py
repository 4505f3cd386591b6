"""Tiny pipelines as folders, and caches of the hub with them."""

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
    """An empty cache of the hub, which is not asked; returns what puts a folder there, as it lays files out."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def put(folder, model, revision="main"):
        place = cache / f"models--{model.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / revision).write_text(COMMIT)
        return shutil.copytree(folder, place / "snapshots" / COMMIT)

    return put
