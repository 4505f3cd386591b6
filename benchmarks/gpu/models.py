"""SDXL and FLUX.1 at their real size, with random weights created on the device: cost does not depend on weights.

`SMALL` has the same families with almost no weights, for the pretended card.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from benchmarks.batching.traffic import Mix
from tests import families


@dataclass(frozen=True, slots=True)
class GpuModel:
    """A pipeline, its defaults, and the mixed traffic for it. `rows`: images together at most."""

    name: str
    title: str
    make: Callable[[torch.device], Any]
    guidance: float
    side: int
    """Default width and height in pixels."""
    mix: Mix
    rows: int

    @property
    def steps(self) -> int:
        """Default number of steps."""
        return min(self.mix.steps)

    def defaults(self, folder: Path) -> Path:
        """Write the file of a model with these defaults into a folder; return the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        defaults = {"num_inference_steps": self.steps, "guidance_scale": self.guidance}
        (folder / "imagegen.json").write_text(json.dumps({**defaults, "width": self.side, "height": self.side}))
        return folder


@contextmanager
def _made_on(device: torch.device) -> Iterator[None]:
    """Make modules on a device in half precision, without a copy of them in main memory first."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device), torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(before)


def _clip(kind: Any, width: int, layers: int, heads: int, activation: str) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act=activation,
        projection_dim=width,
        # The tokenizer is a small one of our own; its ids are among the real ones.
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    return kind(config).eval()


def _vae(latent_channels: int, scaling_factor: float, shift_factor: float | None, quantized: bool) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=latent_channels,
        sample_size=1024,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=quantized,
        use_post_quant_conv=quantized,
    ).eval()


def sdxl(device: torch.device) -> Any:
    """Return SDXL: a UNet of 2.6 thousand million weights, and two text encoders."""
    with _made_on(device):
        models = {
            "text_encoder": _clip(transformers.CLIPTextModel, 768, 12, 12, "quick_gelu"),
            "text_encoder_2": _clip(transformers.CLIPTextModelWithProjection, 1280, 32, 20, "gelu"),
            "vae": _vae(4, 0.13025, None, quantized=True),
            "unet": diffusers.UNet2DConditionModel(
                sample_size=128,
                block_out_channels=(320, 640, 1280),
                layers_per_block=2,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=(1, 2, 10),
                attention_head_dim=(5, 10, 20),
                cross_attention_dim=2048,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            ).eval(),
        }
    return diffusers.StableDiffusionXLPipeline(
        **models,
        tokenizer=families.clip_tokenizer(),
        tokenizer_2=families.clip_tokenizer(),
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
    )


def flux(device: torch.device) -> Any:
    """Return FLUX.1-dev: a transformer of 12 thousand million weights, and a T5 of 4.7 for its text."""
    with _made_on(device):
        t5 = transformers.T5Config(
            vocab_size=32128,
            d_model=4096,
            d_kv=64,
            d_ff=10240,
            num_layers=24,
            num_heads=64,
            feed_forward_proj="gated-gelu",
        )
        models = {
            "text_encoder": _clip(transformers.CLIPTextModel, 768, 12, 12, "quick_gelu"),
            "text_encoder_2": transformers.T5EncoderModel(t5).eval(),
            "vae": _vae(16, 0.3611, 0.1159, quantized=False),
            "transformer": diffusers.FluxTransformer2DModel(guidance_embeds=True).eval(),
        }
    return diffusers.FluxPipeline(
        **models,
        tokenizer=families.clip_tokenizer(),
        tokenizer_2=families.t5_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, shift=3.0
        ),
    )


_WORDS = 60
"""Words of a prompt: the text must matter more than rounding, and FLUX.1 pads it to 512 tokens."""


def _mix(steps: tuple[int, ...], guidance: float, side: int, other: int) -> Mix:
    """Return traffic of which half is square and the rest portrait or landscape."""
    sizes = ((side, side), (side, side), (side, other), (other, side))
    return Mix(steps, (guidance,), sizes, _WORDS)


def _tiny(make: Callable[[], families.Family]) -> Callable[[torch.device], Any]:
    return lambda device: make().pipeline.to(device)


REAL = (
    GpuModel("sdxl", "SDXL", sdxl, 5.0, 1024, _mix((8, 12, 16), 5.0, 1024, 832), 8),
    GpuModel("flux", "FLUX.1-dev", flux, 3.5, 1024, _mix((4, 6, 8), 3.5, 1024, 832), 8),
)
SMALL = (
    GpuModel("sdxl", "tiny SDXL", _tiny(families.sdxl), 5.0, 64, _mix((2, 3), 5.0, 64, 96), 2),
    GpuModel("flux", "tiny FLUX.1", _tiny(families.flux), 3.5, 64, _mix((2, 3), 3.5, 64, 96), 2),
)


def model(name: str, *, small: bool) -> GpuModel:
    """Return the model of this name."""
    return next(each for each in (SMALL if small else REAL) if each.name == name)
