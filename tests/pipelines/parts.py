"""Parts of tiny pipelines: text encoders that see images, their processors, and VAEs."""

import diffusers
import transformers

from tests import families

ROPE = {"rope_type": "default", "rope_theta": 1000000.0}


def vision_tokenizer():
    """Return the tokenizer of Qwen with the tokens for images: 259 to 262."""
    tokenizer = families.qwen_tokenizer()
    special = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    return tokenizer


TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
)

_TEXT = {
    "vocab_size": 320,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
}
_SPECIAL = {
    "image_token_id": 259,
    "video_token_id": 260,
    "vision_start_token_id": 261,
    "vision_end_token_id": 262,
}
_VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}


def qwen25_vl(kind="Qwen2_5_VLForConditionalGeneration"):
    """Return a text encoder that sees images."""
    rope = {**ROPE, "mrope_section": [1, 1, 2]}
    text = {**_TEXT, "num_hidden_layers": 2, "rope_parameters": rope}
    vision = {**_VISION, "fullatt_block_indexes": [0]}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_SPECIAL)
    return getattr(transformers, kind)(config).eval()


def qwen3_vl(kind="Qwen3VLForConditionalGeneration", layers=2):
    """Return a newer text encoder that sees images."""
    rope = {**ROPE, "mrope_section": [1, 1, 2]}
    text = {**_TEXT, "num_hidden_layers": layers, "head_dim": 8, "rope_parameters": rope}
    vision = {**_VISION, "deepstack_visual_indexes": [0]}
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **_SPECIAL)
    return getattr(transformers, kind)(config).eval()


def qwen25_processor():
    """Return the processor of `qwen25_vl`."""
    return transformers.Qwen2_5_VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(),
        tokenizer=vision_tokenizer(),
        video_processor=transformers.Qwen2VLVideoProcessor(),
        chat_template=TEMPLATE,
    )


def qwen3_processor():
    """Return the processor of `qwen3_vl`."""
    return transformers.Qwen3VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(patch_size=16),
        tokenizer=vision_tokenizer(),
        video_processor=transformers.Qwen3VLVideoProcessor(),
        chat_template=TEMPLATE,
    )


def qwen_vae():
    """Return the VAE of Qwen-Image, which shrinks by 8."""
    return _video_vae(diffusers.AutoencoderKLQwenImage)


def wan_vae():
    """Return the VAE of Wan, which shrinks by 8."""
    return _video_vae(diffusers.AutoencoderKLWan)


def _video_vae(kind):
    return kind(
        base_dim=8,  # images to edit are scaled to a million pixels
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()


def flux2_vae():
    """Return the VAE of FLUX.2, which shrinks by 8 and packs in patches."""
    return diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    ).eval()


def flow(**options):
    """Return the scheduler of most newer families."""
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


def gemma2():
    """Return a text encoder of Gemma 2."""
    config = transformers.Gemma2Config(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=1024,
    )
    return transformers.Gemma2Model(config).eval()


def fix(kind, name, value):
    """Fix an attribute that a pipeline class sets itself and its folder does not store, as its image sizes."""
    setattr(kind, name, property(lambda self: value, lambda self, given: None))
