"""Tiny pipelines, made as in `tests.families`, whose images depend on how the prompts of a call are padded."""

import importlib.util
from collections.abc import Callable
from typing import Any

import diffusers
import torch
import transformers
from tokenizers.processors import TemplateProcessing

from tests import families
from tests.families import SIDE, Family


def _family(pipeline: Any, **options: Any) -> Family:
    pipeline.set_progress_bar_config(disable=True)
    return Family(pipeline, **options)


def _sized(**more: Any) -> dict[str, Any]:
    return {"height": SIDE, "width": SIDE, "output_type": "pt", **more}


def cogview4() -> Family:
    """CogView4: prompts are padded on the left to the longest of a call, and no mask is passed."""
    torch.manual_seed(0)
    tokenizer = families.qwen_tokenizer()
    tokenizer.padding_side = "left"
    # The prompt that is empty has a token too, as with the tokenizer of GLM.
    first = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 257)])
    tokenizer.backend_tokenizer.post_processor = first
    config = transformers.GlmConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=2048,
        pad_token_id=256,
    )
    transformer = diffusers.CogView4Transformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        text_embed_dim=32,
        time_embed_dim=16,
        condition_dim=8,
        pos_embed_max_size=32,
        sample_size=SIDE // 8,
        rope_axes_dim=(16, 16),
    ).eval()
    pipeline = diffusers.CogView4Pipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.GlmModel(config).eval(),
        vae=families.autoencoder(),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            base_shift=0.25,
            max_shift=0.75,
            base_image_seq_len=256,
            use_dynamic_shifting=True,
            time_shift_type="linear",
        ),
    )
    return _family(pipeline, arguments=_sized(max_sequence_length=512))


def omnigen() -> Family:
    """OmniGen: the prompt and the image are one sequence, padded on the left to the longest of a call."""
    torch.manual_seed(0)
    transformer = diffusers.OmniGenTransformer2DModel(
        in_channels=4,
        patch_size=2,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=32,
        num_layers=2,
        pad_token_id=256,
        vocab_size=320,
        max_position_embeddings=4096,
        original_max_position_embeddings=4096,
        rope_scaling={"long_factor": [1.0] * 4, "short_factor": [1.0] * 4},
        pos_embed_max_size=32,
        time_step_dim=4,
    ).eval()
    pipeline = diffusers.OmniGenPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1),
        vae=families.autoencoder(),
        tokenizer=families.qwen_tokenizer(),
    )
    return _family(pipeline, arguments=_sized(), negative_prompt=False)


def qwen_image21() -> Family:
    """Qwen-Image 2.1: the transformer reads which tokens are of an image from row 0."""
    torch.manual_seed(0)
    tokenizer = families.qwen_tokenizer()
    special = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]  # 259 to 262
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    processor = transformers.Qwen3VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen3VLVideoProcessor(),
        chat_template=(
            "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'][0]['text'] }}"
            "<|im_end|>\n{% endfor %}"
        ),
    )
    config = transformers.Qwen3VLConfig(
        text_config={
            "vocab_size": 320,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1000000.0},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=259,
        video_token_id=260,
        vision_start_token_id=261,
        vision_end_token_id=262,
    )
    transformer = diffusers.QwenImage21Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=16,
        mlp_ratio=2,
        axes_dims_rope=(8, 4, 4),
    ).eval()
    vae = diffusers.AutoencoderKLQwenImage21(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()
    pipeline = diffusers.QwenImage21Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=transformers.Qwen3VLForConditionalGeneration(config).eval(),
        processor=processor,
        transformer=transformer,
    )
    return _family(pipeline, arguments=_sized(use_kv_cache=False, true_cfg_scale=4.0), guidances=())


PADDING_FAMILIES: dict[str, Callable[[], Family]] = {"cogview4": cogview4}
if importlib.util.find_spec("torchvision"):  # their processors are made of it, and imagegen does without
    PADDING_FAMILIES |= {"omnigen": omnigen, "qwen-image-2.1": qwen_image21}
