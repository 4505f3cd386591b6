"""Images of pipeline calls: converted to 8 bits on the device, and copied to the host without waiting.

The host would otherwise wait for the device, copy four times the bytes, and convert them on the device thread.
"""

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from imagegen_worker.backends import GeneratedImage
from imagegen_worker.backends.diffusers.pipeline_classes import call_function

_PASSED_ON = re.compile(r"\.image_processor\.postprocess\([^()]*output_type=output_type")
_DECIDES = re.compile(r"output_type\s*(?:==|!=|in|not in)\s*[\[({]?\s*[\"'](?!latent)")
"""A call that treats the type of its output itself; only "latent" is treated alike by all."""


def returns_tensors(pipeline: Any) -> bool:
    """Return whether a pipeline's call with `output_type="pt"` returns the values from 0 to 1 of its PIL images.

    True if the call only passes the type on to diffusers' own image processor.
    """
    processor = type(getattr(pipeline, "image_processor", None))
    if not issubclass(processor, VaeImageProcessor) or any(
        vars(VaeImageProcessor)[name] is not inspect.getattr_static(processor, name)
        for name in ("postprocess", "pt_to_numpy", "numpy_to_pil")
    ):
        return False
    try:
        source = inspect.getsource(call_function(type(pipeline)))
    except (OSError, TypeError):  # there is no source
        return False
    return _PASSED_ON.search(source) is not None and _DECIDES.search(source) is None


def finished_images(images: Sequence[Any]) -> list[GeneratedImage]:
    """Return the images of a call, whose copies from the device are queued if they are tensors.

    A tensor has the shape (channels, height, width) and values from 0 to 1, which are rounded as diffusers does.
    """
    return [_finished(image) if isinstance(image, torch.Tensor) else image for image in images]


def _finished(image: torch.Tensor) -> GeneratedImage:
    values = image.detach().float().nan_to_num(0.0).mul(255).round().clamp(0, 255)
    pixels = values.to(torch.uint8).movedim(0, -1)
    return copied_image(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)


def copied_image(pixels: torch.Tensor) -> Callable[[], Image.Image]:
    """Queue the copy of an 8-bit image from the device; return a function that waits for it, on any thread.

    `pixels` has the shape (height, width, channels), or (height, width) for shades of grey.
    """
    pixels = pixels.contiguous()
    if pixels.device.type != "cuda":
        return lambda: Image.fromarray(pixels.numpy())
    copied = pixels.to("cpu", non_blocking=True)  # into pinned memory
    ready = torch.cuda.Event(blocking=True)  # a thread that waits for it leaves its processor to others
    ready.record(torch.cuda.current_stream(pixels.device))

    def wait() -> Image.Image:
        ready.synchronize()
        return Image.fromarray(copied.numpy())

    return wait
