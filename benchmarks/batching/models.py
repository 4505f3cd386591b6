"""The models of the batching benchmark: random weights, made in code and kept in a folder while it runs."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch

from tests import families

_GUIDANCE = 5.0
_STEPS = 6


@dataclass(frozen=True, slots=True)
class BenchModel:
    """A pipeline to make and the side of its images in pixels."""

    name: str
    make: Callable[[], Any]
    side: int

    def save(self, folder: Path) -> Path:
        """Write the pipeline with its defaults into a folder of its own; return that."""
        folder = folder / self.name
        self.make().save_pretrained(folder)
        defaults = {"num_inference_steps": _STEPS, "guidance_scale": _GUIDANCE}
        (folder / "imagegen.json").write_text(json.dumps({**defaults, "width": self.side, "height": self.side}))
        return folder


def tiny_sdxl() -> Any:
    """Return SDXL with next to no weights: what is not the model's own work weighs most here."""
    return families.sdxl().pipeline


def mid_sdxl() -> Any:
    """Return SDXL with a UNet of 21 million weights: the model's own work weighs most, as on a GPU."""
    pipeline = tiny_sdxl()
    torch.manual_seed(0)
    pipeline.register_modules(
        unet=diffusers.UNet2DConditionModel(
            block_out_channels=(64, 128, 256),
            layers_per_block=1,
            sample_size=16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4, 8),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 1, 2),
            projection_class_embeddings_input_dim=6 * 8 + 32,
            cross_attention_dim=64,
            norm_num_groups=8,
        ).eval()
    )
    return pipeline


MODELS = (BenchModel("tiny", tiny_sdxl, 64), BenchModel("mid", mid_sdxl, 128))
