"""What decides the cost of a request, and the measured cost of a model on a worker."""

from typing import Annotated

import msgspec
from msgspec import Meta

from imagegen_protocol.declaration import TaskName
from imagegen_protocol.error_texts import format_value
from imagegen_protocol.errors import InvalidRequestError
from imagegen_protocol.fields import Count, Name, Seconds
from imagegen_protocol.limits import MAX_LORAS, MAX_SIDE_PIXELS, MAX_STEPS
from imagegen_protocol.request import GenerationRequest, task_of

Side = Annotated[int, Meta(ge=1, le=MAX_SIDE_PIXELS)]
Steps = Annotated[int, Meta(ge=1, le=MAX_STEPS)]


class RequestShape(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What decides the cost of a request and which requests share forwards, besides model and number of images."""

    width: Side | None = None
    """Width in pixels; None for the model's default, or for the width of the input image."""
    height: Side | None = None
    """Height in pixels; None for the model's default, or for the height of the input image."""
    num_inference_steps: Steps | None = None
    """Denoising steps that are executed; None for the model's default."""
    task: TaskName = "text-to-image"
    """Task that follows from the input images."""
    loras: Annotated[list[Name], Meta(max_length=MAX_LORAS)] = []
    """Names of the LoRAs."""


NO_SHAPE = RequestShape()
"""Shape of a header that states none."""


def shape_of(request: GenerationRequest) -> RequestShape:
    """Return the shape for the header of a request: what its body states, without the defaults of its model."""
    return RequestShape(
        width=request.width,
        height=request.height,
        num_inference_steps=request.executed_steps(),
        task=task_of(request),
        loras=[lora.name for lora in request.loras or ()],
    )


def check_shape(shape: RequestShape, request: GenerationRequest) -> None:
    """Raise `InvalidRequestError` if the shape in a header contradicts the body.

    A key that the body does not state may have any value, and a shape of default values only states nothing.
    """
    body = shape_of(request)
    for name in RequestShape.__struct_fields__ if shape != NO_SHAPE else ():
        check_stated(name, getattr(shape, name), getattr(body, name))


def check_stated(name: str, stated: object, *applied: object) -> None:
    """Raise `InvalidRequestError` if a header states none of the values that apply; None: unknown."""
    if stated not in applied and applied != (None,):
        expected = f"{format_value(stated)} as the request's header states"
        raise InvalidRequestError(f"{name}: expected {expected}, got {format_value(applied[0])}")


class CostModel(msgspec.Struct, frozen=True, kw_only=True):
    """The measured cost of one model on one worker, in seconds of the device.

    A forward of `images` images of `megapixels` each takes
    `forward_seconds + megapixel_seconds * megapixels * images`.
    """

    forward_seconds: Seconds
    """Fixed seconds per forward of the denoiser."""
    megapixel_seconds: Seconds
    """Seconds per image and megapixel in a forward of the denoiser."""
    request_seconds: Seconds = 0.0
    """Fixed seconds per request outside these forwards, such as those of the text encoders."""
    decode_megapixel_seconds: Seconds = 0.0
    """Seconds per image and megapixel to decode latents."""
    load_seconds: Seconds | None = None
    """Seconds to load the model; None while unknown."""
    error: Seconds | None = None
    """Mean relative error of the last predictions for whole requests, 0.1 for 10 %; None while unknown."""
    samples: Count = 0
    """Number of measured forwards."""

    def forward(self, megapixels: float, images: int) -> float:
        """Return the seconds of one forward of `images` images of `megapixels` each."""
        return self.forward_seconds + self.megapixel_seconds * megapixels * images

    def alone(self, megapixels: float, steps: int, images: int) -> float:
        """Return the seconds of a request of `images` images of `megapixels` each that runs alone."""
        decode = self.decode_megapixel_seconds * megapixels * images
        return self.request_seconds + steps * self.forward(megapixels, images) + decode
