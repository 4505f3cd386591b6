"""Tiny pipelines with random weights, one function a family, made in code: no hub, no files, a few ms a step.

Each returns a `Family`: the stock pipeline, and arguments that its call takes besides prompt, steps and generator.
Weights come from a fixed seed. Sizes are 64 x 64 pixels; the autoencoders shrink by 8 (FLUX.2 and SDXL too).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image

SIDE = 64


@dataclass
class Family:
    """A pipeline and how to call it."""

    pipeline: Any
    arguments: dict[str, Any] = field(default_factory=dict)
    guidances: tuple[float, ...] = (5.0, 3.0, 7.5, 1.0)
    negative_prompt: bool = True


# ---- tokenizers and text encoders --------------------------------------------------------------------------


def _byte_characters() -> list[str]:
    """The 256 printable stand-ins that byte-level tokenizers use."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in kept}
    spare = 256
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(spare)
            spare += 1
    return [table[byte] for byte in range(256)]


def clip_tokenizer() -> Any:
    characters = _byte_characters()
    words = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(
        vocab={word: index for index, word in enumerate(words)}, merges=[], model_max_length=77
    )


def clip_text(projection: bool = False, width: int = 32) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=514,
        hidden_size=width,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=32,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return kind(config).eval()


def t5_tokenizer() -> Any:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(chr(code), -3.0) for code in range(33, 127)]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0)


def t5_text() -> Any:
    config = transformers.T5Config(
        vocab_size=128, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    return transformers.T5EncoderModel(config).eval()


def qwen_tokenizer() -> Any:
    vocab = {character: index for index, character in enumerate(_byte_characters())}
    vocab |= {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocab, merges=[])
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    )
    return tokenizer


def qwen_text(causal: bool) -> Any:
    config = transformers.Qwen3Config(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
    )
    kind = transformers.Qwen3ForCausalLM if causal else transformers.Qwen3Model
    return kind(config).eval()


# ---- autoencoders and denoisers ----------------------------------------------------------------------------


def autoencoder(
    latent_channels: int = 4, scaling_factor: float = 0.18215, shift_factor: float | None = None
) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=SIDE,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
    ).eval()


def sdxl_unet() -> Any:
    return diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=SIDE // 8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 8 + 32,
        cross_attention_dim=64,
        norm_num_groups=8,
    ).eval()


def _euler() -> Any:
    return diffusers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )


# ---- families ----------------------------------------------------------------------------------------------


def _family(pipeline: Any, **options: Any) -> Family:
    pipeline.set_progress_bar_config(disable=True)
    return Family(pipeline, **options)


def _sized(**more: Any) -> dict[str, Any]:
    return {"height": SIDE, "width": SIDE, "output_type": "pt", **more}


def sd() -> Family:
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=SIDE // 8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=32,
        norm_num_groups=8,
    ).eval()
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    pipeline = diffusers.StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _family(pipeline, arguments=_sized())


def sdxl() -> Family:
    torch.manual_seed(0)
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(projection=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=sdxl_unet(),
        scheduler=_euler(),
    )
    return _family(pipeline, arguments=_sized())


def picture() -> Image.Image:
    """A picture to start from."""
    return Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB")


def sdxl_img2img() -> Family:
    pipeline = diffusers.StableDiffusionXLImg2ImgPipeline.from_pipe(sdxl().pipeline)
    return _family(pipeline, arguments={"image": picture(), "strength": 0.7, "output_type": "pt"})


def sdxl_inpaint() -> Family:
    pipeline = diffusers.StableDiffusionXLInpaintPipeline.from_pipe(sdxl().pipeline)
    mask = Image.new("L", (SIDE, SIDE), 0)
    mask.paste(255, (16, 16, 48, 48))
    arguments = _sized(image=picture(), mask_image=mask, strength=0.8)
    return _family(pipeline, arguments=arguments)


def sd3() -> Family:
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=SIDE // 8,
        patch_size=1,
        in_channels=16,  # fewer are refused by the pipeline that inpaints
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=64,
    ).eval()
    pipeline = diffusers.StableDiffusion3Pipeline(
        vae=autoencoder(latent_channels=16, scaling_factor=1.5, shift_factor=0.06),
        text_encoder=clip_text(projection=True),
        text_encoder_2=clip_text(projection=True),
        text_encoder_3=t5_text(),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=t5_tokenizer(),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )
    return _family(pipeline, arguments=_sized(max_sequence_length=32))


def flux() -> Family:
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    ).eval()
    pipeline = diffusers.FluxPipeline(
        vae=autoencoder(scaling_factor=1.5, shift_factor=0.06),
        text_encoder=clip_text(),
        text_encoder_2=t5_text(),
        tokenizer=clip_tokenizer(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )
    return _family(pipeline, arguments=_sized(max_sequence_length=32), negative_prompt=False)


def pixart_sigma() -> Family:
    torch.manual_seed(0)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=SIDE // 8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        use_additional_conditions=False,
    ).eval()
    pipeline = diffusers.PixArtSigmaPipeline(
        vae=autoencoder(),
        text_encoder=t5_text(),
        tokenizer=t5_tokenizer(),
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )
    arguments = _sized(use_resolution_binning=False, max_sequence_length=32, clean_caption=False)
    return _family(pipeline, arguments=arguments)


def z_image() -> Family:
    torch.manual_seed(0)
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 32, 32],  # prompts of up to 512 tokens, and the image
    ).eval()
    pipeline = diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(scaling_factor=0.36, shift_factor=0.11),
        text_encoder=qwen_text(causal=False),
        tokenizer=qwen_tokenizer(),
        transformer=transformer,
    )
    return _family(pipeline, arguments=_sized(max_sequence_length=96))


def flux2_klein() -> Family:
    torch.manual_seed(0)
    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=96,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    ).eval()
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIDE,
    ).eval()
    pipeline = diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=qwen_text(causal=True),
        tokenizer=qwen_tokenizer(),
        transformer=transformer,
    )
    arguments = _sized(max_sequence_length=64, text_encoder_out_layers=(1, 2, 3))
    return _family(pipeline, arguments=arguments, negative_prompt=False)


FAMILIES: dict[str, Callable[[], Family]] = {
    "sd": sd,
    "sdxl": sdxl,
    "sdxl-img2img": sdxl_img2img,
    "sdxl-inpaint": sdxl_inpaint,
    "sd3": sd3,
    "flux": flux,
    "pixart-sigma": pixart_sigma,
    "z-image": z_image,
    "flux2-klein": flux2_klein,
}
