"""Conversion of keyword arguments to a validated request and its frames."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, cast

import msgspec

from imagegen_client.input_images import ImageSource, read_image
from imagegen_protocol import InvalidRequestError, encode_request
from imagegen_protocol.costs import shape_of
from imagegen_protocol.declaration import map_images, split_images
from imagegen_protocol.error_texts import describe_validation_error
from imagegen_protocol.frames import encode
from imagegen_protocol.messages import Submit
from imagegen_protocol.parameters import HEADER_PARAMETERS, IMAGE_PARAMETERS
from imagegen_protocol.request import make_request


class RequestOptions(TypedDict, total=False):
    """The parameters of a request, except the prompt; absent or None: the model's own default.

    Written out for type checkers; a test compares it with the declaration in `imagegen_protocol.parameters`.
    """

    seed: int | None
    """Seed of the first image; if None, random and below 2⁵². Image `i` of several has the seed `seed + i`."""
    negative_prompt: str | None
    num_inference_steps: int | None
    guidance_scale: float | None
    width: int | None
    """Pixels."""
    height: int | None
    """Pixels."""
    num_images: int
    loras: Sequence[Mapping[str, str | float]] | None
    """LoRAs that the workers have, such as `[{"name": "ink", "scale": 0.8}]`; the default scale is 1."""
    image: ImageSource | None
    """Image to start from: a PIL image, a path, or the bytes of a file; sets the size of the output by default."""
    images: Sequence[ImageSource] | None
    """Reference images, in place of `image`; the output has the model's default size."""
    mask_image: ImageSource | None
    """Mask of the image's size: transparent areas are generated anew; without any, white areas."""
    strength: float | None
    """How far to depart from the image, above 0; 1 keeps nothing of it."""
    scheduler: str | None
    """Scheduler class of diffusers, such as `EulerDiscreteScheduler`; an error lists those that exist."""
    output_format: Literal["png", "jpeg", "webp"] | None
    quality: int | None
    """Quality of JPEG and WebP, 1 … 100."""
    extra: Mapping[str, Any] | None
    """Further parameters of the model's pipeline, by name; an unknown name raises an error that lists them."""
    model: str | None
    """Name of a model; None: the broker's default model."""
    priority: int
    """−100 … 100; higher values are dispatched first."""
    timeout_seconds: float | None
    """Seconds until `DeadlineExceededError`; None: no limit."""


def with_frames(options: RequestOptions) -> RequestOptions:
    """Return the options with encoded images, which several requests can share. Raises as `build` does."""
    return cast(RequestOptions, map_images(options, IMAGE_PARAMETERS, read_image))


def has_images(options: Mapping[str, Any]) -> bool:
    """Return whether there are images to read and encode, which takes milliseconds."""
    return any(options.get(name) is not None for name in IMAGE_PARAMETERS)


def build(
    prompt: str,
    options: RequestOptions,
    *,
    request_id: bytes,
    seed: int,
    progress: bool = False,
    preview: bool = False,
) -> tuple[Submit, int, tuple[bytes, ...]]:
    """Return header, seed and frames (body and images) of a request; `seed` is used if the options have none.

    Raises `InvalidRequestError` naming the field, its value and the range.
    """
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    header = {name: given.pop(name) for name in HEADER_PARAMETERS if name in given}
    if "inputs" in given:
        raise InvalidRequestError("inputs: expected the images as image and mask_image, got their names")
    if isinstance(given.get("extra"), Mapping):
        given["extra"] = dict(given["extra"])
    # Checked before the images are read, which takes longer.
    given, sources = split_images(given, IMAGE_PARAMETERS)
    inputs = {"inputs": list(sources)} if sources else {}
    request = make_request(**{"prompt": prompt, "seed": seed, **given, **inputs})
    if not (isinstance(progress, bool) and isinstance(preview, bool)):
        header |= {"progress": progress, "preview": preview}  # validated with the header, for a clear error
        progress = preview = False
    submit = Submit(
        request_id=request_id,
        progress=progress,
        preview=preview,
        images=request.num_images,
        shape=shape_of(request),
    )
    if header:
        submit = _with_header(submit, header)
    try:
        if header:
            # Encoded here to raise errors in the caller; the I/O thread encodes the header again.
            encode(submit)
        body = encode_request(request)
    except UnicodeEncodeError as error:
        texts = {"prompt": prompt, **given, **header}
        name = next((name for name, value in texts.items() if value == error.object), "loras")
        shown = ascii(error.object[max(0, error.start - 20) : error.end + 20])
        raise InvalidRequestError(f"{name}: expected text that can be encoded as UTF-8, got {shown}") from error
    return submit, request.seed, (body, *(read_image(path, source) for path, source in sources.items()))


def _with_header(submit: Submit, header: Mapping[str, Any]) -> Submit:
    """Return the header with the options applied and validated. Raises `InvalidRequestError`."""
    try:
        return msgspec.convert({**msgspec.to_builtins(submit, builtin_types=(bytes,)), **header}, Submit)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(describe_validation_error(header, str(error))) from error
