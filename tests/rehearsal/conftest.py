"""The pretended card, and folders with tiny models."""

import json

import pytest

from imagegen_worker.backends.diffusers.pipeline_batcher import PipelineBatcher
from tests.families import FAMILIES, SIDE
from tests.integration.continuous.helpers import one_thread  # noqa: F401 - a fixture for all of them
from tests.rehearsal.card import pretended_card


@pytest.fixture
def card():
    with pretended_card() as state:
        yield state


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """Return a function that saves a family as a model whose default images are small; it returns the folder."""
    folders = {}

    def save(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            FAMILIES[name]().pipeline.save_pretrained(folders[name])
            (folders[name] / "imagegen.json").write_text(json.dumps({"width": SIDE, "height": SIDE}))
        return folders[name]

    return save


@pytest.fixture
def make_batcher(monkeypatch):
    """Return a factory of `PipelineBatcher`; each is closed before patches of the test are undone."""
    made = []

    def make(pipeline, **options):
        made.append(PipelineBatcher(pipeline, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()
