"""Checks of the answers of workers, which the gateway does not trust."""

import math
from collections.abc import Mapping
from typing import Any

from imagegen_client import GenerationResult, ImagegenError
from imagegen_gateway.image_store import MEDIA_TYPES
from imagegen_protocol.limits import MAX_SIDE_PIXELS


def check_result(result: GenerationResult, options: Mapping[str, Any]) -> GenerationResult:
    """Check that a result matches the options of its request; return it. Raises `ImagegenError` if it does not."""
    expected = options.get("num_images", 1)
    formats, sizes = result.formats, result.sizes
    if not len(result.encoded) == len(formats) == len(sizes) == len(result.seeds) == expected:
        raise _invalid(f"expected {expected} images, got {len(result.encoded)}")
    for format_ in formats:
        if format_ not in MEDIA_TYPES:
            raise _invalid(f"unknown image format {format_[:20]!r}")
    for side in (side for size in sizes for side in size):
        if not 1 <= side <= MAX_SIDE_PIXELS:
            raise _invalid(f"expected sides of 1 to {MAX_SIDE_PIXELS} pixels, got {side}")
    return result


def finite(number: float | None) -> float | None:
    """Return a number; None for one that JSON can't express."""
    return number if number is not None and math.isfinite(number) else None


def _invalid(reason: str) -> ImagegenError:
    return ImagegenError(f"the worker's answer is invalid: {reason}")
