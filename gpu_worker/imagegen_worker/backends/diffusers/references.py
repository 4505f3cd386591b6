"""Pipelines that accept several reference images in one request."""

from collections.abc import Mapping
from typing import Any

MAX_IMAGES: Mapping[str, int] = {
    "Flux2Pipeline": 10,
    "Flux2KleinPipeline": 4,
    "Flux2KleinKVPipeline": 4,
    "QwenImageEditPlusPipeline": 3,
}
"""Maximum reference images by class. The calls have no limit; these are the limits for which the models are made.

Other pipelines use a list of images as a batch, or have one image for each prompt.
"""


def max_reference_images(pipeline: Any) -> int:
    """Return how many reference images one request may have; 0 if the pipeline uses a list in another way."""
    return MAX_IMAGES.get(type(pipeline).__name__, 0)
