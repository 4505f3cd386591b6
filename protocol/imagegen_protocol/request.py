"""The body of a request: declaration and validation of its parameters.

Client and worker validate the body; the broker forwards it unread.
"""

from typing import Annotated, Any, Literal

import msgpack
import msgspec
from msgspec import Meta

from imagegen_protocol.declaration import (
    Frame,
    ParameterInfo,
    Parameters,
    TaskName,
    image_paths,
    read_parameters,
)
from imagegen_protocol.error_texts import describe_validation_error, format_value
from imagegen_protocol.errors import InvalidRequestError
from imagegen_protocol.extra_parameters import check_extra_parameters
from imagegen_protocol.limits import (
    MAX_BODY_BYTES,
    MAX_GUIDANCE_SCALE,
    MAX_IMAGES_PER_REQUEST,
    MAX_INPUTS,
    MAX_LORA_SCALE,
    MAX_LORAS,
    MAX_NAME_LENGTH,
    MAX_PROMPT_LENGTH,
    MAX_REFERENCE_IMAGES,
    MAX_SEED,
    MAX_SIDE_PIXELS,
    MAX_STEPS,
    MIN_SIDE_PIXELS,
)

_LORA_NAME = r"^[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*\Z"
"""Pattern of a plain file name, without path separators and not hidden."""
_CLASS_NAME = r"^[A-Za-z][A-Za-z0-9_]*\Z"


class Lora(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A LoRA of the worker, and its scale."""

    name: Annotated[
        str,
        Meta(min_length=1, max_length=MAX_NAME_LENGTH, pattern=_LORA_NAME),
        ParameterInfo(label="Name", description="Name of a LoRA that the workers have.", unset=None),
    ]
    scale: Annotated[
        float,
        Meta(ge=-MAX_LORA_SCALE, le=MAX_LORA_SCALE),
        ParameterInfo(label="Scale", description="Weight of the LoRA; 0 disables it.", unset=None),
    ] = 1.0


OutputFormat = Literal["png", "jpeg", "webp"]
DEFAULT_OUTPUT_FORMAT: OutputFormat = "png"
DEFAULT_QUALITY = 90
"""Quality of JPEG and WebP without visible loss; a file has about a fifth of the size of a PNG."""
_WITH_IMAGE: tuple[TaskName, ...] = ("image-to-image", "inpainting")


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The body of a request, which declares all parameters except those of the header. Sizes are in pixels.

    None stands for the model's default. Image `i` of `num_images` is generated with the seed `(seed + i) % 2**63`,
    from its own generator.
    """

    prompt: Annotated[
        str,
        Meta(min_length=1, max_length=MAX_PROMPT_LENGTH, pattern=r"\S"),
        ParameterInfo(
            label="Prompt",
            description="Text that the image should show.",
            unset=None,
            per_model=False,
            listed=False,
            in_result=False,
        ),
    ]
    seed: Annotated[
        int,
        Meta(ge=0, le=MAX_SEED),
        ParameterInfo(
            label="Seed",
            description="Seed of the first image; image `i` of several has the seed plus `i`.",
            unset="random",
            metavar="N",
            per_model=False,
            listed=False,
        ),
    ]
    negative_prompt: (
        Annotated[
            str,
            Meta(max_length=MAX_PROMPT_LENGTH),
            ParameterInfo(
                label="Negative prompt",
                description="Text that the image should not show.",
                unset="none",
                metavar="TEXT",
                in_result=False,
                group="more",
            ),
        ]
        | None
    ) = None
    num_inference_steps: (
        Annotated[
            int,
            Meta(ge=1, le=MAX_STEPS),
            ParameterInfo(
                label="Steps",
                description="Number of denoising steps.",
                unit="steps",
                option="--steps",
                group="main",
            ),
        ]
        | None
    ) = None
    guidance_scale: (
        Annotated[
            float,
            Meta(ge=0, le=MAX_GUIDANCE_SCALE),
            ParameterInfo(label="Guidance", description="How closely to follow the prompt.", group="main"),
        ]
        | None
    ) = None
    width: (
        Annotated[
            int,
            Meta(ge=MIN_SIDE_PIXELS, le=MAX_SIDE_PIXELS),
            ParameterInfo(
                label="Width", description="Width of the images.", unit="pixels", http_name="size", in_http=False
            ),
        ]
        | None
    ) = None
    height: (
        Annotated[
            int,
            Meta(ge=MIN_SIDE_PIXELS, le=MAX_SIDE_PIXELS),
            ParameterInfo(
                label="Height", description="Height of the images.", unit="pixels", http_name="size", in_http=False
            ),
        ]
        | None
    ) = None
    num_images: Annotated[
        int,
        Meta(ge=1, le=MAX_IMAGES_PER_REQUEST),
        ParameterInfo(
            label="Images",
            description="Number of images, each with a seed of its own.",
            unset=None,
            http_name="n",
            per_model=False,
            group="main",
        ),
    ] = 1
    loras: (
        Annotated[
            list[Lora],
            Meta(max_length=MAX_LORAS),
            ParameterInfo(
                label="LoRAs",
                description="LoRAs that the workers have, each with its scale.",
                unset="none",
                option="--lora",
                metavar="NAME[:SCALE]",
            ),
        ]
        | None
    ) = None
    inputs: Annotated[list[str], Meta(max_length=MAX_INPUTS)] | None = None
    """Paths of the image frames after the body, in order (see `split_images`)."""
    image: Annotated[
        Frame,
        ParameterInfo(
            label="Image",
            description="Image to start from; the output has its size, scaled to the model's limits, unless a size"
            " is given.",
            unset="none",
            tasks=_WITH_IMAGE,
            metavar="FILE",
            in_result=False,
        ),
    ] = None
    images: (
        Annotated[
            list[Frame],
            Meta(min_length=1, max_length=MAX_REFERENCE_IMAGES),
            ParameterInfo(
                label="References",
                description="Reference images, in place of `image`; the output has the default size.",
                unset="none",
                tasks=("image-to-image",),
                option="--image",
                metavar="FILE --image FILE ...",
            ),
        ]
        | None
    ) = None
    mask_image: Annotated[
        Frame,
        ParameterInfo(
            label="Mask",
            description="Mask of the image's size: transparent areas are generated anew or, if no pixel is"
            " transparent, white areas.",
            unset="none",
            tasks=("inpainting",),
            option="--mask",
            metavar="FILE",
            http_name="mask",
            in_result=False,
        ),
    ] = None
    strength: (
        Annotated[
            float,
            Meta(gt=0, le=1),
            ParameterInfo(
                label="Strength",
                description="How far to depart from the image; 1 keeps nothing of it.",
                tasks=_WITH_IMAGE,
                group="image",
            ),
        ]
        | None
    ) = None
    scheduler: (
        Annotated[
            str,
            Meta(max_length=MAX_NAME_LENGTH, pattern=_CLASS_NAME),
            ParameterInfo(
                label="Scheduler",
                description="Scheduler class of diffusers, such as `EulerDiscreteScheduler`.",
                metavar="NAME",
                choices_by_model=True,
                group="more",
            ),
        ]
        | None
    ) = None
    output_format: (
        Annotated[
            OutputFormat,
            ParameterInfo(
                label="Format",
                description="File format in which the worker encodes the images.",
                unset=None,
                default=DEFAULT_OUTPUT_FORMAT,
                option="--format",
                per_model=False,
                group="more",
            ),
        ]
        | None
    ) = None
    quality: (
        Annotated[
            int,
            Meta(ge=1, le=100),
            ParameterInfo(
                label="Quality",
                description="Quality of JPEG and WebP; 100 is the best.",
                unset=None,
                default=DEFAULT_QUALITY,
                http_name="output_compression",
                per_model=False,
                listed=False,
            ),
        ]
        | None
    ) = None
    extra: (
        Annotated[
            dict[str, Any],
            ParameterInfo(
                label="Extra",
                description="Further parameters of the model's pipeline, by name.",
                unset="none",
                metavar="NAME=VALUE",
                listed=False,
            ),
        ]
        | None
    ) = None

    def executed_steps(self) -> int | None:
        """Return the number of denoising steps that are executed, after `strength`; None: the model's default."""
        if self.num_inference_steps is None or self.strength is None:
            return self.num_inference_steps
        return max(1, int(self.num_inference_steps * self.strength))

    def seeds(self) -> list[int]:
        """Return the seed of each image."""
        return [(self.seed + index) % (MAX_SEED + 1) for index in range(self.num_images)]


FIELDS: tuple[str, ...] = GenerationRequest.__struct_fields__
BODY_PARAMETERS: Parameters = read_parameters(GenerationRequest)
"""Parameters of the body, and its images."""


def task_of(request: GenerationRequest) -> TaskName:
    """Return the task of a request, which follows from its images."""
    inputs = request.inputs or []
    if "mask_image" in inputs:
        return "inpainting"
    return "image-to-image" if inputs else "text-to-image"


def make_request(**fields: Any) -> GenerationRequest:
    """Return a validated request. Raises `InvalidRequestError` with the field, its value and the range."""
    try:
        request = msgspec.convert(fields, GenerationRequest)
    except msgspec.ValidationError as error:
        problem = str(error)
        known = f"; known are {', '.join(FIELDS)}" if "unknown field" in problem else ""
        raise InvalidRequestError(describe_validation_error(fields, _reword(problem)) + known) from error
    except UnicodeEncodeError as error:  # a key of a nested map
        raise InvalidRequestError(f"expected names that can be encoded as UTF-8: {error}") from error
    names = [lora.name for lora in request.loras or ()]
    if len(set(names)) < len(names):
        raise InvalidRequestError(f"loras: expected each name once, got {', '.join(names)}")
    _check_inputs(request)
    _check_task(request)
    if request.quality is not None and (request.output_format or DEFAULT_OUTPUT_FORMAT) == "png":
        raise InvalidRequestError(
            f"quality: expected none for the output_format 'png' (jpeg and webp have one), got {request.quality}"
        )
    if request.extra is not None:
        check_extra_parameters(request.extra, FIELDS)
    return request


def _reword(problem: str) -> str:
    """Return the text of msgspec's error, with the choices of the field, if it has any."""
    if "matching regex" in problem and problem.endswith("`$.prompt`"):
        return "expected at least 1 character other than white space - at `$.prompt`"
    for name, parameter in BODY_PARAMETERS.items():
        if parameter.choices and "enum value" in problem and f"at `$.{name}" in problem:
            return f"expected {' or '.join(parameter.choices)} - at `$.{name}`"
    return problem


def check_frames(request: GenerationRequest, count: int) -> None:
    """Raise `InvalidRequestError` unless there is one image frame for each of the `inputs` of a request."""
    inputs = request.inputs or []
    if count != len(inputs):
        named = f" ({', '.join(inputs)})" if inputs else ""
        raise InvalidRequestError(
            f"inputs: expected {len(inputs)} image frames{named} after the body, got {count}"
        )


def _check_inputs(request: GenerationRequest) -> None:
    inputs = request.inputs or []
    paths = dict(image_paths(request, BODY_PARAMETERS))
    if any(path not in paths for path in inputs):
        raise InvalidRequestError(f"inputs: expected {' or '.join(paths)}, got {format_value(inputs)}")
    if len(set(inputs)) < len(inputs):
        raise InvalidRequestError(f"inputs: expected each name once, got {', '.join(inputs)}")
    if missing := [path for path, required in paths.items() if required and path not in inputs]:
        raise InvalidRequestError(f"inputs: expected {' and '.join(missing)} too, got {format_value(inputs)}")
    if request.images is not None and ("image" in inputs or "mask_image" in inputs):
        other = "image" if "image" in inputs else "mask_image"
        raise InvalidRequestError(f"images: expected no {other} beside them, got {len(request.images)} images")
    if "mask_image" in inputs and "image" not in inputs:
        raise InvalidRequestError("inputs: expected an image with the mask_image, got mask_image alone")


def _check_task(request: GenerationRequest) -> None:
    """Raise `InvalidRequestError` for a parameter that does not apply to the task of the request."""
    task = task_of(request)
    for name, parameter in BODY_PARAMETERS.items():
        value = getattr(request, name)
        if value is not None and task not in parameter.info.tasks:
            needed = "an image" if "image-to-image" in parameter.info.tasks else "a mask_image"
            raise InvalidRequestError(
                f"{name}: expected only with {needed}, got {format_value(value)} without one"
            )


def encode_request(request: GenerationRequest) -> bytes:
    """Return the body frame of a request."""
    return msgspec.msgpack.encode(request)


def parse_request(body: bytes) -> GenerationRequest:
    """Decode and validate a body frame. Raises `InvalidRequestError` and no other exception."""
    if len(body) > MAX_BODY_BYTES:
        raise InvalidRequestError(f"the body is {len(body)} bytes long, at most {MAX_BODY_BYTES} are allowed")
    try:
        fields = msgpack.unpackb(body, raw=False, strict_map_key=True)
    except (ValueError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise InvalidRequestError(f"the body is not msgpack: {str(error) or type(error).__name__}") from error
    if not isinstance(fields, dict) or not all(isinstance(key, str) for key in fields):
        raise InvalidRequestError("the body must be a msgpack map with string keys")
    return make_request(**fields)
