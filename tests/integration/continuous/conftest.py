"""Tiny pipelines, and batchers for them."""

import pytest

from imagegen_worker.backends.diffusers.pipeline_batcher import PipelineBatcher
from tests.families import FAMILIES
from tests.integration.continuous.helpers import one_thread  # noqa: F401 - a fixture for all of them
from tests.padding_families import PADDING_FAMILIES


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return FAMILIES[request.param]()


@pytest.fixture(scope="module", params={**FAMILIES, **PADDING_FAMILIES})
def any_family(request):
    return {**FAMILIES, **PADDING_FAMILIES}[request.param]()


@pytest.fixture(scope="module")
def sdxl():
    return FAMILIES["sdxl"]()


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
