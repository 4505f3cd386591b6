"""UNets with other numbers of channels than Stable Diffusion's, in the pipelines for inpainting.

These pipelines expect `in_channels` to be 4 for a UNet that takes latents only, or 9 for one that takes mask and
image too. A UNet whose latents have another number of channels is presented with 4.
"""

from types import SimpleNamespace
from typing import Any

_LATENT_CHANNELS = 4
_CHANNELS_WITH_MASK = 9


class UNetWithLatentChannels:
    """A UNet whose `config.in_channels` is 4; calls and other attributes are those of the original."""

    def __init__(self, unet: Any) -> None:
        self._unet = unet
        self.config = SimpleNamespace(**{**unet.config, "in_channels": _LATENT_CHANNELS})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the UNet."""
        return self._unet(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "_unet":  # a copy that is being made has no attributes yet
            raise AttributeError(name)
        return getattr(self._unet, name)


def has_unusual_channels(pipeline: Any) -> bool:
    """Return whether a pipeline's UNet takes latents only, and these have another number of channels than 4."""
    unet, vae = getattr(pipeline, "unet", None), getattr(pipeline, "vae", None)
    if unet is None or vae is None:
        return False
    channels = unet.config.in_channels
    return channels == vae.config.latent_channels and channels not in (_LATENT_CHANNELS, _CHANNELS_WITH_MASK)
