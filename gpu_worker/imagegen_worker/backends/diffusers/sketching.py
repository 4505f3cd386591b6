"""Small pictures of latents on the way, without the decoder: one linear map from latent channels to colours.

The map is fitted once, to the model's own autoencoder: random pictures are encoded, and what the decoder makes of
the latents is explained by them. It costs microseconds a picture, where the decoder may cost as much as a step.
"""

import logging
from collections.abc import Mapping
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

_log = logging.getLogger(__name__)


class Sketcher:
    """Draws the latents of one model. `scale`: pixels a latent; `weights`: (channels + 1, 3), the last for 1."""

    def __init__(self, weights: torch.Tensor, scale: int) -> None:
        self._weights = weights
        self._scale = scale

    def sketch(self, latents: Any, size: tuple[int, int]) -> Sketch | None:
        """Return what draws one image's latents, of shape (channels, height, width); None if they are no such.

        `size`: width and height of the image in pixels. The device is not waited for.
        """
        channels = len(self._weights) - 1
        expected = (channels, size[1] // self._scale, size[0] // self._scale)
        if not isinstance(latents, torch.Tensor) or tuple(latents.shape) != expected:
            return None  # packed in patches, of several frames, or of another size: better none than a wrong one
        shrink = -(-max(expected[1:]) // MAX_PREVIEW_SIDE_PIXELS)
        small = latents.detach()[None].float()
        if shrink > 1:
            small = torch.nn.functional.avg_pool2d(small, shrink, ceil_mode=True, count_include_pad=False)
        colours = small[0].movedim(0, -1) @ self._weights[:-1] + self._weights[-1]
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
    config: Mapping[str, Any] = getattr(vae, "config", {})
    # Models that normalise each channel for itself, or have no `scaling_factor`, do something else to latents.
    if config.get("scaling_factor") is None or config.get("latents_mean") is not None or hasattr(vae, "bn"):
        return None
    assert vae is not None
    device = getattr(pipeline, "_execution_device", pipeline.device)
    encoded = vae.encode(_pictures().to(device, vae.dtype)).latent_dist.mode()
    if encoded.ndim != 4:
        return None
    decoded = (vae.decode(encoded, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)
    latents = (encoded.float() - (config.get("shift_factor") or 0.0)) * config["scaling_factor"]
    scale = _SIDE // latents.shape[-1]
    inputs = torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1)
    seen = torch.nn.functional.avg_pool2d(decoded, scale)
    weights = _solve(_pixels(inputs[1:-1]), _pixels(seen[1:-1]))
    held_out, colours = _pixels(inputs[:: _COUNT - 1]), _pixels(seen[:: _COUNT - 1])  # the first and the last
    error = (held_out @ weights - colours).square().mean()
    explained = 1 - (error / colours.var(dim=0).mean()).item()
    if not explained >= MIN_EXPLAINED:  # also where it is not a number
        _log.info("no previews: the latents explain only %.2f of the colours", explained)
        return None
    return Sketcher(weights.float().to(device), scale)


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
