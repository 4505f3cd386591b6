"""A UNet with other numbers of channels than Stable Diffusion's, for the pipelines that inpaint with it.

They ask whether it takes 4 channels, and mean: as many as the latents have; or 9, with mask and image beside.
"""

from types import SimpleNamespace
from typing import Any

_LATENTS = 4
_WITH_MASK = 9


class AsManyAsLatents:
    """A UNet that says so in their words. It is called, and asked for all else, as it is."""

    def __init__(self, unet: Any) -> None:
        self._unet = unet
        self.config = SimpleNamespace(**{**unet.config, "in_channels": _LATENTS})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the UNet."""
        return self._unet(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._unet, name)


def has_odd_channels(pipeline: Any) -> bool:
    """Say whether a pipeline's UNet takes as many channels as its latents have, and these are not 4."""
    unet, vae = getattr(pipeline, "unet", None), getattr(pipeline, "vae", None)
    if unet is None or vae is None:
        return False
    channels = unet.config.in_channels
    return channels == vae.config.latent_channels and channels not in (_LATENTS, _WITH_MASK)
