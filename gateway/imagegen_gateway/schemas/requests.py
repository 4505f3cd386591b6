"""What may be asked: OpenAI's fields, and those of diffusion models beside them."""

import json
import re
from typing import Annotated, Any, Literal

from fastapi import UploadFile
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from imagegen_protocol.limits import (
    MAX_GUIDANCE_SCALE,
    MAX_IMAGES_PER_REQUEST,
    MAX_LORA_SCALE,
    MAX_LORAS,
    MAX_NAME_LENGTH,
    MAX_PROMPT_LENGTH,
    MAX_SEED,
    MAX_STEPS,
    MAX_TIMEOUT_SECONDS,
)

SIZE = r"^(auto|[1-9][0-9]{0,3}x[1-9][0-9]{0,3})$"
_NO_CONTROLS = r"^[^\x00-\x1f\x7f]+$"


class Lora(BaseModel):
    """A LoRA that the workers have, and how much of it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=MAX_NAME_LENGTH)
    scale: float = Field(1.0, ge=-MAX_LORA_SCALE, le=MAX_LORA_SCALE)


def _loras(value: Any) -> Any:
    """A form has only texts, in lists: there the LoRAs are JSON."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        try:
            return json.loads(value[0])
        except ValueError as error:
            raise ValueError(f'expected JSON such as [{{"name": "ink", "scale": 0.8}}]: {error}') from error
    return value


class GenerationParameters(BaseModel):
    """What to draw. What is not said is the model's own default."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_LENGTH, pattern=r"\S", examples=["a red circle"])
    model: str | None = Field(None, min_length=1, max_length=MAX_NAME_LENGTH, pattern=_NO_CONTROLS)
    n: int | None = Field(None, ge=1, le=MAX_IMAGES_PER_REQUEST, description="Images; 1 unless said.")
    size: str | None = Field(
        None, pattern=SIZE, description="`WIDTHxHEIGHT` in pixels, or `auto`.", examples=["512x512"]
    )
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(
        None, ge=1, le=100, description="The quality of JPEG and WebP: 100 is the best."
    )
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Random unless said; image i has seed + i.")
    num_inference_steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    guidance_scale: float | None = Field(None, ge=0, le=MAX_GUIDANCE_SCALE)
    negative_prompt: str | None = Field(None, max_length=MAX_PROMPT_LENGTH)
    scheduler: str | None = Field(None, max_length=MAX_NAME_LENGTH, pattern=r"^[A-Za-z][A-Za-z0-9_]*$")
    strength: float | None = Field(None, gt=0, le=1, description="How far to go from the image.")
    loras: list[Lora] | None = Field(None, max_length=MAX_LORAS)
    priority: int | None = Field(None, ge=-100, le=100, description="At most the key's own.")
    timeout_seconds: float | None = Field(None, gt=0, le=MAX_TIMEOUT_SECONDS)
    background: Literal["auto", "opaque"] | None = Field(None, description="Taken, without effect.")
    moderation: Literal["auto", "low"] | None = Field(None, description="Taken, without effect.")
    quality: Literal["auto", "standard", "hd", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="Taken, without effect: say `num_inference_steps`."
    )
    style: Literal["vivid", "natural"] | None = Field(None, description="Taken, without effect.")
    user: str | None = Field(None, description="Taken, without effect.")
    safety_identifier: str | None = Field(None, description="Taken, without effect.")


class ResponseOptions(BaseModel):
    """How the answer to an OpenAI request is to come."""

    response_format: Literal["url", "b64_json"] | None = Field(None, description="`b64_json` unless said.")
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    partial_images: int | None = Field(
        None, ge=0, le=3, description="Small pictures on the way, at most; needs `stream`."
    )


class GenerateBody(GenerationParameters, ResponseOptions):
    """The body of `POST /v1/images/generations`."""


class EditBody(GenerationParameters, ResponseOptions):
    """The form of `POST /v1/images/edits`."""

    model_config = ConfigDict(extra="forbid", strict=False)

    image: UploadFile | None = Field(None, description="What to start from: PNG, JPEG or WebP.")
    images: list[UploadFile] | None = Field(None, alias="image[]", description="`image`, as a list of one.")
    mask: UploadFile | None = Field(
        None, description="Where it is transparent, or white if it has no transparency, is made anew."
    )
    loras: Annotated[list[Lora] | None, BeforeValidator(_loras)] = Field(
        None, max_length=MAX_LORAS, description="As JSON."
    )
    input_fidelity: Literal["high", "low"] | None = Field(None, description="Taken, without effect.")


class JobBody(GenerationParameters):
    """The body of `POST /v1/jobs`."""

    image: str | None = Field(
        None, min_length=1, description="What to start from, in base64 or as a `data:` URL.", examples=[None]
    )
    mask: str | None = Field(None, min_length=1, description="As the mask of an edit; needs `image`.")
    webhook_url: str | None = Field(
        None, max_length=2000, pattern=r"^https?://\S+$", description="Called when the job has ended."
    )


class Page(BaseModel):
    """Which part of a list."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(20, ge=1, le=100)
    after: str | None = Field(None, description="The last job of the page before.")


_SIZE_PARTS = re.compile(r"(\d+)x(\d+)")
_AS_THEY_ARE = (
    "model",
    "output_format",
    "seed",
    "num_inference_steps",
    "guidance_scale",
    "negative_prompt",
    "scheduler",
    "strength",
    "priority",
    "timeout_seconds",
)


def options(body: GenerationParameters) -> dict[str, Any]:
    """Return what is asked for, as the client's `RequestOptions`, images aside; what it does not say is absent."""
    given = {name: value for name in _AS_THEY_ARE if (value := getattr(body, name)) is not None}
    if body.n is not None:
        given["num_images"] = body.n
    if body.output_compression is not None:
        given["quality"] = body.output_compression
    if body.loras is not None:
        given["loras"] = [lora.model_dump() for lora in body.loras]
    if body.size is not None and (parts := _SIZE_PARTS.fullmatch(body.size)):
        given["width"], given["height"] = int(parts[1]), int(parts[2])
    return given
