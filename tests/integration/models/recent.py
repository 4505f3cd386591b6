"""Tiny pipelines of newer families, beside those of `tests.families`: a request's own fields suffice."""

import diffusers
import torch
import transformers

from tests import families


def chroma():
    torch.manual_seed(0)
    transformer = diffusers.ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    ).eval()
    return diffusers.ChromaPipeline(
        vae=families.autoencoder(scaling_factor=1.5, shift_factor=0.06),
        text_encoder=families.t5_text(),
        tokenizer=families.t5_tokenizer(),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def auraflow():
    torch.manual_seed(0)
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        out_channels=4,
        pos_embed_max_size=256,
    ).eval()
    text = transformers.UMT5Config(
        vocab_size=128, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    return diffusers.AuraFlowPipeline(
        tokenizer=families.t5_tokenizer(),
        text_encoder=transformers.UMT5EncoderModel(text).eval(),
        vae=families.autoencoder(),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def qwen_image():
    torch.manual_seed(0)
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    ).eval()
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=24,
        z_dim=4,
        dim_mult=[1, 1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()
    text = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 320,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1000000.0},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
        },
    )
    return diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(text).eval(),
        tokenizer=families.qwen_tokenizer(),
        transformer=transformer,
    )


def flux2_klein():
    """As the stock call wants it: it reads layers 9, 18 and 27 of the text encoder."""
    pipeline = families.flux2_klein().pipeline
    config = transformers.Qwen3Config(
        **{**pipeline.text_encoder.config.to_dict(), "num_hidden_layers": 28, "layer_types": None}
    )
    pipeline.text_encoder = transformers.Qwen3ForCausalLM(config).eval()
    return pipeline


def _of(name):
    return lambda: families.FAMILIES[name]().pipeline


PIPELINES = {
    **{name: _of(name) for name in ("sd", "sdxl", "sd3", "flux", "z-image")},
    "flux2-klein": flux2_klein,
    "chroma": chroma,
    "auraflow": auraflow,
    "qwen-image": qwen_image,
}
