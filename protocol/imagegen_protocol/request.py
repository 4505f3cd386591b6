"""The body of a request: what to draw. The broker passes it on unread; client and worker check it."""

from typing import Annotated, Any, Literal, get_args

import msgpack
import msgspec
from msgspec import Meta

from imagegen_protocol.errors import InvalidRequestError
from imagegen_protocol.explain import explain, show
from imagegen_protocol.extra import check_extra
from imagegen_protocol.limits import (
    MAX_BODY_BYTES,
    MAX_GUIDANCE_SCALE,
    MAX_IMAGES_PER_REQUEST,
    MAX_LORA_SCALE,
    MAX_LORAS,
    MAX_NAME_LENGTH,
    MAX_PROMPT_LENGTH,
    MAX_SEED,
    MAX_SIDE_PIXELS,
    MAX_STEPS,
)

_LORA_NAME = r"^[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*\Z"
"""A plain file name: nothing that leads out of a folder, and nothing hidden."""
_CLASS_NAME = r"^[A-Za-z][A-Za-z0-9_]*\Z"


class Lora(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A LoRA that the worker has, and how much of it."""

    name: Annotated[str, Meta(min_length=1, max_length=MAX_NAME_LENGTH, pattern=_LORA_NAME)]
    scale: Annotated[float, Meta(ge=-MAX_LORA_SCALE, le=MAX_LORA_SCALE)] = 1.0


InputName = Literal["image", "mask_image"]
OutputFormat = Literal["png", "jpeg", "webp"]
DEFAULT_OUTPUT_FORMAT: OutputFormat = "png"


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What to draw. `None` means the model's own default. Sizes are in pixels.

    Image `i` of `num_images` is made with the seed `(seed + i) % 2**63`, from a generator of its own.
    """

    prompt: Annotated[str, Meta(min_length=1, max_length=MAX_PROMPT_LENGTH)]
    seed: Annotated[int, Meta(ge=0, le=MAX_SEED)]
    negative_prompt: Annotated[str, Meta(max_length=MAX_PROMPT_LENGTH)] | None = None
    num_inference_steps: Annotated[int, Meta(ge=1, le=MAX_STEPS)] | None = None
    guidance_scale: Annotated[float, Meta(ge=0, le=MAX_GUIDANCE_SCALE)] | None = None
    width: Annotated[int, Meta(ge=8, le=MAX_SIDE_PIXELS)] | None = None
    height: Annotated[int, Meta(ge=8, le=MAX_SIDE_PIXELS)] | None = None
    num_images: Annotated[int, Meta(ge=1, le=MAX_IMAGES_PER_REQUEST)] = 1
    loras: Annotated[list[Lora], Meta(max_length=MAX_LORAS)] | None = None
    inputs: Annotated[list[InputName], Meta(max_length=2)] | None = None
    """What the image frames behind the body are, in order."""
    strength: Annotated[float, Meta(gt=0, le=1)] | None = None
    scheduler: Annotated[str, Meta(max_length=MAX_NAME_LENGTH, pattern=_CLASS_NAME)] | None = None
    output_format: OutputFormat | None = None
    quality: Annotated[int, Meta(ge=1, le=100)] | None = None
    extra: dict[str, Any] | None = None
    """Further parameters of the pipeline's call, by name; see `check_extra`."""

    def seeds(self) -> list[int]:
        """Return the seed of each image."""
        return [(self.seed + index) % (MAX_SEED + 1) for index in range(self.num_images)]


_CHOICES: dict[str, tuple[str, ...]] = {"inputs": get_args(InputName), "output_format": get_args(OutputFormat)}
FIELDS: tuple[str, ...] = GenerationRequest.__struct_fields__


def make_request(**fields: Any) -> GenerationRequest:
    """Return a checked request. Raises `InvalidRequestError` naming the field, its value and the range."""
    try:
        request = msgspec.convert(fields, GenerationRequest)
    except msgspec.ValidationError as error:
        known = f"; known are {', '.join(FIELDS)}" if "unknown field" in str(error) else ""
        problem = str(error)
        for name, choices in _CHOICES.items():
            if "enum value" in problem and f"at `$.{name}" in problem:
                problem = f"expected {' or '.join(choices)} - at `$.{name}`"
        raise InvalidRequestError(explain(fields, problem) + known) from error
    if not request.prompt.strip():
        shown = show(request.prompt)
        raise InvalidRequestError(f"prompt: expected at least 1 character beside white space, got {shown}")
    names = [lora.name for lora in request.loras or ()]
    if len(set(names)) < len(names):
        raise InvalidRequestError(f"loras: expected each name once, got {', '.join(names)}")
    _check_inputs(request)
    if request.quality is not None and (request.output_format or DEFAULT_OUTPUT_FORMAT) == "png":
        raise InvalidRequestError(
            f"quality: expected none for the output_format 'png' (jpeg and webp have one), got {request.quality}"
        )
    if request.extra is not None:
        check_extra(request.extra, FIELDS)
    return request


def check_frames(request: GenerationRequest, count: int) -> None:
    """Raise `InvalidRequestError` if a request does not come with one image frame for each of its `inputs`."""
    inputs = request.inputs or []
    if count != len(inputs):
        named = f" ({', '.join(inputs)})" if inputs else ""
        raise InvalidRequestError(
            f"inputs: expected {len(inputs)} image frames{named} behind the body, got {count}"
        )


def _check_inputs(request: GenerationRequest) -> None:
    inputs = request.inputs or []
    if len(set(inputs)) < len(inputs):
        raise InvalidRequestError(f"inputs: expected each name once, got {', '.join(inputs)}")
    if "mask_image" in inputs and "image" not in inputs:
        raise InvalidRequestError("inputs: expected an image with the mask_image, got mask_image alone")
    if request.strength is not None and "image" not in inputs:
        raise InvalidRequestError(f"strength: expected only with an image, got {request.strength:g} without one")


def encode_request(request: GenerationRequest) -> bytes:
    """Return the body frame of a request."""
    return msgspec.msgpack.encode(request)


def parse_request(body: bytes) -> GenerationRequest:
    """Decode and check a body frame. Raises `InvalidRequestError`, whatever the bytes are."""
    if len(body) > MAX_BODY_BYTES:
        raise InvalidRequestError(f"the body is {len(body)} bytes long, at most {MAX_BODY_BYTES} are allowed")
    try:
        fields = msgpack.unpackb(body, raw=False, strict_map_key=True)
    except (ValueError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise InvalidRequestError(f"the body is not msgpack: {str(error) or type(error).__name__}") from error
    if not isinstance(fields, dict) or not all(isinstance(key, str) for key in fields):
        raise InvalidRequestError("the body must be a msgpack map with string keys")
    return make_request(**fields)
