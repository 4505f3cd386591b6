"""Previews of latents without the decoder: a linear map from latent channels to colours.

The map is fitted once to the model's own VAE: random images are encoded, and a ridge regression explains the
decoded pixels by the latents. A preview takes microseconds; the decoder may take as long as a denoising step.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from imagegen_protocol.limits import MAX_PREVIEW_SIDE_PIXELS
from imagegen_worker.backends import Sketch
from imagegen_worker.backends.diffusers.finished_images import copied_image
from imagegen_worker.backends.tracebacks import release_frames

MIN_EXPLAINED = 0.5
"""Minimum share of the pixels' variance that the map explains, in images that were not fitted."""
_SIDE = 128
"""Width and height of the random images, in pixels."""
_PATCHES = 4
"""Random colours along a side of such an image."""
_COUNT = 8
"""Number of such images; the first and the last are not fitted."""
_RIDGE = 1e-3
"""Ridge penalty of the fit, over the mean variance of the inputs."""
_PATCH = 4
"""Positions in one token of packed latents."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LatentMap:
    """Colours of a position. `weights`: (channels + 1, 3), the last row is the bias; `scale`: pixels per side."""

    weights: torch.Tensor
    scale: int


class LatentPreview:
    """Makes previews of one model. `plain`: map for latents as the decoder takes them; `packed`: in patches."""

    def __init__(self, plain: LatentMap | None, packed: LatentMap | None = None) -> None:
        self._plain = plain
        self._packed = packed

    def preview(self, latents: Any, size: tuple[int, int]) -> Sketch | None:
        """Return a function that makes the preview of one image; None for latents of an unknown layout.

        `latents`: of shape (channels, height, width), or packed, (positions, channels), row by row. `size`: width
        and height of the image in pixels. The device is not synchronised.
        """
        if not isinstance(latents, torch.Tensor) or latents.ndim not in (2, 3):
            return None
        latent_map = self._packed if latents.ndim == 2 else self._plain
        if latent_map is None:
            return None
        channels, height, width = (
            len(latent_map.weights) - 1,
            size[1] // latent_map.scale,
            size[0] // latent_map.scale,
        )
        expected = (height * width, channels) if latents.ndim == 2 else (channels, height, width)
        if tuple(latents.shape) != expected:
            return None  # of another size, or with more than the image: no preview is better than a wrong one
        grid = latents.detach().float()
        if latents.ndim == 2:
            grid = grid.T.reshape(channels, height, width)
        shrink = -(-max(height, width) // MAX_PREVIEW_SIDE_PIXELS)
        if shrink > 1:
            pool = torch.nn.functional.avg_pool2d
            grid = pool(grid[None], shrink, ceil_mode=True, count_include_pad=False)[0]
        colours = grid.movedim(0, -1) @ latent_map.weights[:-1] + latent_map.weights[-1]
        pixels = colours.clamp(0, 1).mul(255).round().to(torch.uint8)
        return copied_image(pixels)


def fit_latent_preview(pipeline: Any) -> LatentPreview | None:
    """Return the previews of a pipeline, fitted to its VAE; None if the fit explains too little or fails."""
    try:
        with torch.no_grad():
            return _fit(pipeline)
    except Exception as error:  # noqa: BLE001 - whatever an unknown VAE raises, there are just no previews
        _log.info("no previews: %s: %s", type(error).__name__, error)
        release_frames(error)
        return None


def _fit(pipeline: Any) -> LatentPreview | None:
    vae = getattr(pipeline, "vae", None)
    if vae is None:
        return None
    device = getattr(pipeline, "_execution_device", pipeline.device)
    images = _random_images().to(device, vae.dtype)
    frames = next(weights.ndim == 5 for weights in vae.parameters() if weights.ndim >= 4)  # a VAE for videos
    encoding = vae.encode(images[:, :, None] if frames else images)
    encoded = encoding.latent_dist.mode() if hasattr(encoding, "latent_dist") else encoding.latent
    decoded = (vae.decode(encoded, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)
    if frames:
        encoded, decoded = encoded[:, :, 0], decoded[:, :, 0]
    encoded = encoded.float()
    scale = _SIDE // encoded.shape[-1]
    inputs = torch.cat([encoded, torch.ones_like(encoded[:, :1])], dim=1)
    seen = torch.nn.functional.avg_pool2d(decoded, scale)
    weights = _solve(_pixels(inputs[1:-1]), _pixels(seen[1:-1]))
    held_out, colours = _pixels(inputs[:: _COUNT - 1]), _pixels(seen[:: _COUNT - 1])  # not fitted
    error = (held_out @ weights - colours).square().mean()
    explained = 1 - (error / colours.var(dim=0).mean()).item()
    if not explained >= MIN_EXPLAINED:  # or NaN
        _log.info("no previews: the latents explain only %.2f of the colours", explained)
        return None
    patches = torch.cat([weights[:-1].repeat_interleave(_PATCH, dim=0) / _PATCH, weights[-1:]])
    plain, packed = _normalisations(vae, encoded.shape[1])
    return LatentPreview(
        None if plain is None else LatentMap(_fold(weights, *plain).float().to(device), scale),
        LatentMap(_fold(patches, *packed).float().to(device), 2 * scale)
        if packed is not None and _packs_patches(pipeline, encoded.shape[1])
        else None,
    )


_Affine = tuple[torch.Tensor, torch.Tensor]
"""Factor and summand of each channel that turn the latents of a step into those that the decoder takes."""


def _normalisations(vae: Any, channels: int) -> tuple[_Affine | None, _Affine | None]:
    """Return the normalisations of plain and of packed latents; None if the configuration has none."""
    config: Mapping[str, Any] = vae.config
    if hasattr(vae, "bn"):  # FLUX.2: by the statistics of each channel of a patch; its latents are always packed
        spread = (vae.bn.running_var.double().cpu() + config["batch_norm_eps"]).sqrt()
        return None, (spread, vae.bn.running_mean.double().cpu())
    mean, spread, factor = (config.get(name) for name in ("latents_mean", "latents_std", "scaling_factor"))
    if mean is None or spread is None:  # pipelines use both or none
        mean = spread = None
        if factor is None:
            return None, None
    one = torch.ones(channels, dtype=torch.double)
    scale_by = one * torch.tensor(1.0 if spread is None else spread, dtype=torch.double) / (factor or 1.0)
    summand = one * torch.tensor((config.get("shift_factor") or 0.0) if mean is None else mean, dtype=torch.double)
    return (scale_by, summand), (scale_by.repeat_interleave(_PATCH), summand.repeat_interleave(_PATCH))


def _fold(weights: torch.Tensor, scale_by: torch.Tensor, summand: torch.Tensor) -> torch.Tensor:
    """Return the weights for latents of a step, given those for latents that the decoder takes."""
    return torch.cat([weights[:-1] * scale_by[:, None], weights[-1:] + summand @ weights[:-1]])


def _packs_patches(pipeline: Any, channels: int) -> bool:
    """Return whether the pipeline packs 2 x 2 positions in a token, row by row, with the channels outermost."""
    if not hasattr(pipeline, "_pack_latents"):
        return False
    marked = torch.arange(channels * 16.0).view(1, channels, 4, 4)
    if hasattr(pipeline, "_patchify_latents"):
        packed = pipeline._pack_latents(pipeline._patchify_latents(marked))
    else:
        packed = pipeline._pack_latents(marked, 1, channels, 4, 4)
    patches = marked.view(1, channels, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5)
    return torch.equal(packed, patches.reshape(1, 4, channels * _PATCH))


def _random_images() -> torch.Tensor:
    """Return random images of shape (count, 3, side, side), from -1 to 1: half of them with soft edges."""
    generator = torch.Generator("cpu").manual_seed(0)
    patches = torch.rand(_COUNT // 2, 3, _PATCHES, _PATCHES, generator=generator) * 2 - 1
    modes = ("bilinear", "nearest")
    return torch.cat([torch.nn.functional.interpolate(patches, (_SIDE, _SIDE), mode=mode) for mode in modes])


def _pixels(images: torch.Tensor) -> torch.Tensor:
    """Return the positions of images (count, channels, height, width) as rows, in float64 on the CPU."""
    return images.movedim(1, -1).reshape(-1, images.shape[1]).double().cpu()


def _solve(inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """Return the weights of a ridge regression."""
    square = inputs.T @ inputs
    square += _RIDGE * square.diagonal().mean() * torch.eye(len(square))
    weights: torch.Tensor = torch.linalg.solve(square, inputs.T @ outputs)
    return weights
