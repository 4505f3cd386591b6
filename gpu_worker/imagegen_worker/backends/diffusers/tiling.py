"""Encoding and decoding in tiles, for images of which not even one fits into memory as a whole.

Tiles overlap and are blended, so the image differs a little from one that is decoded as a whole.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

MIN_TILE_LATENTS = 16
"""Minimum side of a tile in latents; smaller tiles lose too much of their surroundings."""
_ATTRIBUTES = ("use_tiling", "tile_sample_min_size", "tile_latent_min_size")


def tile_sides(vae: torch.nn.Module) -> list[int | None]:
    """Return the sides of tiles to try (latents, decreasing); None: the VAE's own. Empty: it has no tiles."""
    if not hasattr(vae, "use_tiling"):
        return []
    own = getattr(vae, "tile_latent_min_size", None)
    if not isinstance(own, int) or not isinstance(getattr(vae, "tile_sample_min_size", None), int):
        return [None]
    sides: list[int | None] = [own]
    while own // 2 >= MIN_TILE_LATENTS:
        own //= 2
        sides.append(own)
    return sides


@contextmanager
def tiled(vae: Any, side: int | None) -> Iterator[None]:
    """Let a VAE work in tiles of this side (latents) within the `with` block."""
    before = {name: vars(vae)[name] for name in _ATTRIBUTES if name in vars(vae)}
    vae.use_tiling = True
    if side is not None:
        vae.tile_sample_min_size = side * before["tile_sample_min_size"] // before["tile_latent_min_size"]
        vae.tile_latent_min_size = side
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(vae, name, value)
