"""Tiny pipelines, and what lets requests for them meet."""

import pytest

from imagegen_worker.backends.diffusers.rendezvous import Rendezvous
from tests.families import FAMILIES
from tests.integration.continuous.company import one_thread  # noqa: F401 - a fixture for all of them
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
def meet(monkeypatch):
    """Return what makes a `Rendezvous`; it leaves the pipeline as it was, before what is patched is mended."""
    made = []

    def make(pipeline, **options):
        made.append(Rendezvous(pipeline, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()
