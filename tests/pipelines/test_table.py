"""The table in docs/models.md agrees with the installed diffusers and with what the worker does."""

import diffusers
import msgspec
import pytest
import torch

from imagegen_protocol.limits import MAX_STEPS
from imagegen_worker.backends.diffusers.parameters import read_signature
from tests.integration.continuous.helpers import one_thread  # noqa: F401 - a fixture
from tests.pipelines import registry, table
from tests.pipelines.catalogue import TINY, is_available
from tests.pipelines.measure import measure

HINT = "run `python -m tests.pipelines`, which writes the table"
MUST_SHARE = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "Flux2KleinPipeline",
    "QwenImagePipeline",
    "ZImagePipeline",
    "ChromaPipeline",
    "Krea2Pipeline",
    "Lumina2Pipeline",
    "AuraFlowPipeline",
)
"""Quick to measure; the table has the others."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
]


@pytest.fixture(scope="module")
def rows():
    return {row.pipeline: row for row in table.read()}


def test_there_is_a_row_for_each_image_pipeline(rows):
    assert list(rows) == registry.image_pipelines(), HINT


def test_every_pipeline_of_the_automatic_mappings_has_a_row(rows):
    videos = {name for name in registry.other_pipelines() if name.startswith("Helios")}
    assert registry.auto_mapped() <= rows.keys() | videos, HINT


def test_the_page_names_the_version_of_diffusers_and_the_other_pipelines():
    text = table.PAGE.read_text().partition(table.BEGIN)[2]
    assert f"diffusers {diffusers.__version__} " in text.replace("\n", " "), HINT
    assert all(f"`{name.removesuffix('Pipeline')}`" in text for name in registry.other_pipelines()), HINT


@pytest.mark.parametrize("name", registry.image_pipelines())
def test_a_class_is_refused_as_the_table_says(rows, name):
    if table.needs_packages(name):
        pytest.skip("a package is missing")
    expected = table.unmeasured(name).served
    if expected == table.NOT_MEASURED:
        assert not rows[name].served.startswith("no: needs") or "package" in rows[name].served, HINT
    else:
        assert rows[name].served == expected, HINT


@pytest.mark.parametrize("name", registry.image_pipelines())
def test_no_list_of_sigmas_or_timesteps_exceeds_the_limit_of_steps(name):
    if table.needs_packages(name):
        pytest.skip("a package is missing")
    for parameter, hint in read_signature(registry.exported()[name]).extra.items():
        if parameter.endswith(("sigmas", "timesteps")) and "list" in str(hint).lower():
            with pytest.raises(msgspec.ValidationError, match="length <= "):
                msgspec.convert([1] * (MAX_STEPS + 1), hint, strict=False)


def test_a_refusal_is_in_the_table_in_full(rows):
    assert rows["DiTPipeline"].served == "no: needs class_labels, which requests can't give"


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", MUST_SHARE)
def test_a_measured_row_is_still_true(rows, name):
    if not is_available(TINY[name]):
        pytest.skip(f"{TINY[name].needs} is missing")
    torch.manual_seed(0)
    seen = measure(TINY[name])
    row, now = rows[name], table.measured(name, seen)
    assert (now.served, now.tasks, now.one_call) == (row.served, row.tasks, row.one_call), HINT
    assert seen.alone <= table.bound_of(row.alone), HINT
    assert seen.together <= 10 * table.bound_of(row.batches), HINT
    assert seen.images_per_forward == seen.most_per_forward, "all requests share all forwards"
    assert seen.images_per_forward > 1
