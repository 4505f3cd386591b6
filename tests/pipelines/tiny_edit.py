"""Tiny pipelines that change images: FLUX.1 Kontext, Qwen-Image-Edit and others."""

import functools
import inspect
import sys

import diffusers
import torch
from diffusers.pipelines.joyimage import image_processor

from tests import families
from tests.integration.models import recent
from tests.pipelines import parts

REFERENCE_AREA = 128 * 128
"""Pixels to which images to edit are scaled; the pipelines scale them to a million."""


def _small_references(kind):
    """Let a pipeline of Qwen-Image-Edit scale images to edit to `REFERENCE_AREA`."""
    module = sys.modules[getattr(diffusers, kind).__module__]
    scale = inspect.unwrap(module.calculate_dimensions)
    small = functools.wraps(scale)(lambda area, ratio: scale(min(area, REFERENCE_AREA), ratio))
    module.calculate_dimensions = small


def kontext():
    """FLUX.1 Kontext: the parts of FLUX.1."""
    return diffusers.FluxKontextPipeline(**_known(diffusers.FluxKontextPipeline, families.flux().pipeline))


def _known(kind, pipeline):
    names = inspect.signature(kind.__init__).parameters
    return {name: part for name, part in pipeline.components.items() if name in names}


def qwen_edit(kind="QwenImageEditPipeline"):
    """Qwen-Image-Edit: the image is part of the prompt, and of the sequence that is denoised."""
    _small_references(kind)
    stock = recent.qwen_image()
    torch.manual_seed(0)
    return getattr(diffusers, kind)(
        scheduler=stock.scheduler,
        vae=parts.qwen_vae(),
        text_encoder=parts.qwen25_vl(),
        tokenizer=parts.vision_tokenizer(),
        processor=parts.qwen25_processor(),
        transformer=stock.transformer,
    )


def qwen_edit_plus():
    """Qwen-Image-Edit with several images."""
    return qwen_edit("QwenImageEditPlusPipeline")


def joyimage_edit():
    """JoyImage-Edit: the text encoder's last layer is read by a hook."""
    image_processor.BUCKETS[1024] = [(64, 64), (64, 128), (128, 64)]
    torch.manual_seed(0)
    transformer = diffusers.JoyImageEditTransformer3DModel(
        patch_size=[1, 2, 2],
        in_channels=4,
        hidden_size=32,
        num_attention_heads=2,
        text_dim=16,
        num_layers=1,
        rope_dim_list=[4, 6, 6],
    ).eval()
    return diffusers.JoyImageEditPipeline(
        scheduler=parts.flow(),
        vae=parts.wan_vae(),
        text_encoder=parts.qwen3_vl(),
        tokenizer=parts.vision_tokenizer(),
        processor=parts.qwen3_processor(),
        transformer=transformer,
    )


def dreamlite():
    """DreamLite: an optional image, and a mobile UNet."""
    torch.manual_seed(0)
    unet = diffusers.DreamLiteUNetModel(
        sample_size=8,
        in_channels=4,
        block_out_channels=(32, 32, 32),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=(4, 4, 4),
        norm_num_groups=8,
    ).eval()
    channels = (8, 8, 8, 8)
    vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    ).eval()
    return diffusers.DreamLitePipeline(
        text_encoder=parts.qwen3_vl(),
        tokenizer=parts.vision_tokenizer(),
        processor=parts.qwen3_processor(),
        vae=vae,
        unet=unet,
        scheduler=parts.flow(),
    )


def of(kind, make, **more):
    """Return a pipeline of a class with the parts of another one; `more`: parts that the other one lacks."""
    made = make()
    return getattr(diffusers, kind)(**_known(getattr(diffusers, kind), getattr(made, "pipeline", made)), **more)


def flux2_klein(kind="Flux2KleinKVPipeline"):
    """FLUX.2 klein with a cache of the reference images."""
    stock = recent.flux2_klein()
    return getattr(diffusers, kind)(**_known(getattr(diffusers, kind), stock))
