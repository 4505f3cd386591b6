"""Small pictures of latents on the way, without the decoder: one linear map from latent channels to colours.

The map is fitted once, to the model's own autoencoder: random pictures are encoded, and what the decoder makes of
the latents is explained by them. It costs microseconds a picture, where the decoder may cost as much as a step.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from imagegen_protocol.limits import MAX_PREVIEW_SIDE_PIXELS
from imagegen_worker.backends import Sketch

MIN_EXPLAINED = 0.5
"""The part of the pixels' variance, in pictures that were not fitted, below which there are no previews."""
_SIDE = 128
_PATCHES = 4
_COUNT = 8
_RIDGE = 1e-3
_PATCH = 4
"""Positions that one token of packed latents stands for."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Layout:
    """What one position of latents tells. `weights`: (channels + 1, 3), the last for 1; `scale`: pixels a side."""

    weights: torch.Tensor
    scale: int


class Sketcher:
    """Draws the latents of one model. `plain`: as the decoder takes them; `packed`: by patches of 2 by 2."""

    def __init__(self, plain: Layout | None, packed: Layout | None = None) -> None:
        self._plain = plain
        self._packed = packed

    def sketch(self, latents: Any, size: tuple[int, int]) -> Sketch | None:
        """Return what draws one image's latents; None if they are of no kind that is known.

        `latents`: of shape (channels, height, width), or packed, (positions, channels), row by row. `size`: width
        and height of the image in pixels. The device is not waited for.
        """
        if not isinstance(latents, torch.Tensor) or latents.ndim not in (2, 3):
            return None
        layout = self._packed if latents.ndim == 2 else self._plain
        if layout is None:
            return None
        channels, height, width = len(layout.weights) - 1, size[1] // layout.scale, size[0] // layout.scale
        expected = (height * width, channels) if latents.ndim == 2 else (channels, height, width)
        if tuple(latents.shape) != expected:
            return None  # of another size, or with something beside the image: better none than a wrong one
        grid = latents.detach().float()
        if latents.ndim == 2:
            grid = grid.T.reshape(channels, height, width)
        shrink = -(-max(height, width) // MAX_PREVIEW_SIDE_PIXELS)
        if shrink > 1:
            pool = torch.nn.functional.avg_pool2d
            grid = pool(grid[None], shrink, ceil_mode=True, count_include_pad=False)[0]
        colours = grid.movedim(0, -1) @ layout.weights[:-1] + layout.weights[-1]
        pixels = colours.clamp(0, 1).mul(255).round().to(torch.uint8)
        if pixels.device.type != "cuda":
            return lambda: Image.fromarray(pixels.numpy())
        copied = pixels.to("cpu", non_blocking=True)
        there = torch.cuda.Event()
        there.record(torch.cuda.current_stream(pixels.device))

        def draw() -> Image.Image:
            there.synchronize()
            return Image.fromarray(copied.numpy())

        return draw


def make_sketcher(pipeline: Any) -> Sketcher | None:
    """Fit the map to a pipeline's autoencoder; None for one that it does not fit."""
    try:
        with torch.no_grad():
            return _fit(pipeline)
    except Exception as error:  # noqa: BLE001 - whatever an unknown autoencoder raises, there is just no preview
        _log.info("no previews: %s: %s", type(error).__name__, error)
        return None


def _fit(pipeline: Any) -> Sketcher | None:
    vae = getattr(pipeline, "vae", None)
    if vae is None:
        return None
    device = getattr(pipeline, "_execution_device", pipeline.device)
    pictures = _pictures().to(device, vae.dtype)
    frames = next(weights.ndim == 5 for weights in vae.parameters() if weights.ndim >= 4)  # made for videos too
    coded = vae.encode(pictures[:, :, None] if frames else pictures)
    encoded = coded.latent_dist.mode() if hasattr(coded, "latent_dist") else coded.latent
    decoded = (vae.decode(encoded, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)
    if frames:
        encoded, decoded = encoded[:, :, 0], decoded[:, :, 0]
    encoded = encoded.float()
    scale = _SIDE // encoded.shape[-1]
    inputs = torch.cat([encoded, torch.ones_like(encoded[:, :1])], dim=1)
    seen = torch.nn.functional.avg_pool2d(decoded, scale)
    weights = _solve(_pixels(inputs[1:-1]), _pixels(seen[1:-1]))
    held_out, colours = _pixels(inputs[:: _COUNT - 1]), _pixels(seen[:: _COUNT - 1])  # the first and the last
    error = (held_out @ weights - colours).square().mean()
    explained = 1 - (error / colours.var(dim=0).mean()).item()
    if not explained >= MIN_EXPLAINED:  # also where it is not a number
        _log.info("no previews: the latents explain only %.2f of the colours", explained)
        return None
    patches = torch.cat([weights[:-1].repeat_interleave(_PATCH, dim=0) / _PATCH, weights[-1:]])
    plain, packed = _normalisations(vae, encoded.shape[1])
    return Sketcher(
        None if plain is None else Layout(_fold(weights, *plain).float().to(device), scale),
        Layout(_fold(patches, *packed).float().to(device), 2 * scale)
        if packed is not None and _packs_patches(pipeline, encoded.shape[1])
        else None,
    )


_Affine = tuple[torch.Tensor, torch.Tensor]
"""By channel: what latents on the way are multiplied by, and what is added, to have what the decoder takes."""


def _normalisations(vae: Any, channels: int) -> tuple[_Affine | None, _Affine | None]:
    """Return how plain latents and packed ones are normalised; None where nothing says it."""
    config: Mapping[str, Any] = vae.config
    if hasattr(vae, "bn"):  # FLUX.2's way: by the statistics of each channel of a patch, and never plain
        spread = (vae.bn.running_var.double().cpu() + config["batch_norm_eps"]).sqrt()
        return None, (spread, vae.bn.running_mean.double().cpu())
    mean, spread, factor = (config.get(name) for name in ("latents_mean", "latents_std", "scaling_factor"))
    if mean is None or spread is None:  # one alone is not used
        mean = spread = None
        if factor is None:
            return None, None
    one = torch.ones(channels, dtype=torch.double)
    times = one * torch.tensor(1.0 if spread is None else spread, dtype=torch.double) / (factor or 1.0)
    plus = one * torch.tensor((config.get("shift_factor") or 0.0) if mean is None else mean, dtype=torch.double)
    return (times, plus), (times.repeat_interleave(_PATCH), plus.repeat_interleave(_PATCH))


def _fold(weights: torch.Tensor, times: torch.Tensor, plus: torch.Tensor) -> torch.Tensor:
    """Return the weights for latents on the way, given those for what the decoder takes."""
    return torch.cat([weights[:-1] * times[:, None], weights[-1:] + plus @ weights[:-1]])


def _packs_patches(pipeline: Any, channels: int) -> bool:
    """Whether the pipeline packs as most do: a token for 2 by 2 positions, row by row, its channels outermost."""
    if not hasattr(pipeline, "_pack_latents"):
        return False
    marked = torch.arange(channels * 16.0).view(1, channels, 4, 4)
    if hasattr(pipeline, "_patchify_latents"):
        packed = pipeline._pack_latents(pipeline._patchify_latents(marked))
    else:
        packed = pipeline._pack_latents(marked, 1, channels, 4, 4)
    patches = marked.view(1, channels, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5)
    return torch.equal(packed, patches.reshape(1, 4, channels * _PATCH))


def _pictures() -> torch.Tensor:
    """Return random pictures in colours from -1 to 1, of shape (count, 3, side, side): half with soft edges."""
    generator = torch.Generator("cpu").manual_seed(0)
    patches = torch.rand(_COUNT // 2, 3, _PATCHES, _PATCHES, generator=generator) * 2 - 1
    ways = ("bilinear", "nearest")
    return torch.cat([torch.nn.functional.interpolate(patches, (_SIDE, _SIDE), mode=way) for way in ways])


def _pixels(images: torch.Tensor) -> torch.Tensor:
    return images.movedim(1, -1).reshape(-1, images.shape[1]).double().cpu()


def _solve(inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """Return the least-squares weights, held small where the inputs do not tell."""
    square = inputs.T @ inputs
    square += _RIDGE * square.diagonal().mean() * torch.eye(len(square))
    weights: torch.Tensor = torch.linalg.solve(square, inputs.T @ outputs)
    return weights
