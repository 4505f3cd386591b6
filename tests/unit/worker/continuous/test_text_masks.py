"""Attention that excludes masked text tokens, for a model whose own attention only lowers their weight."""

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from imagegen_worker.backends.diffusers.text_masks import exclude_masked_text  # noqa: E402


def cogview4():
    torch.manual_seed(0)
    sizes = {"in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8}
    more = {"num_attention_heads": 4, "text_embed_dim": 32, "time_embed_dim": 16, "condition_dim": 8}
    return diffusers.CogView4Transformer2DModel(
        patch_size=2, sample_size=8, pos_embed_max_size=32, rope_axes_dim=(16, 16), **sizes, **more
    ).eval()


def call(model, text, **more):
    generator = torch.Generator().manual_seed(1)
    pairs = {name: torch.full((1, 2), 64.0) for name in ("original_size", "target_size", "crop_coords")}
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    with torch.no_grad():
        return model(latents, text, torch.tensor([5]), **pairs, **more, return_dict=False)[0]


@pytest.fixture
def text():
    return torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(2))


def test_masked_tokens_have_no_influence(text):
    model = cogview4()
    padded = torch.cat([text, torch.full((1, 16, 32), 3.0)], dim=1)
    mask = torch.ones(1, 32, dtype=torch.int64)
    mask[:, 16:] = 0
    alone = call(model, text)
    assert not torch.allclose(call(model, padded, attention_mask=mask), alone, atol=1e-3), "the model's own mask"
    assert exclude_masked_text(model) == "attention_mask"
    torch.testing.assert_close(call(model, padded, attention_mask=mask), alone)
    assert torch.equal(call(model, text), alone), "without a mask, every bit is the same"


def test_other_models_and_other_processors_stay_as_they_are():
    assert exclude_masked_text(torch.nn.Linear(2, 2)) is None
    model = cogview4()
    other = diffusers.models.transformers.transformer_cogview4.CogView4TrainingAttnProcessor()
    for block in model.transformer_blocks:
        block.attn1.set_processor(other)
    assert exclude_masked_text(model) is None
    assert model.transformer_blocks[0].attn1.processor is other


def test_a_model_that_is_wrapped_again_has_the_mask_again():
    model = cogview4()
    assert exclude_masked_text(model) == exclude_masked_text(model) == "attention_mask"
