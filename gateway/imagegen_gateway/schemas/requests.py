"""Request bodies: OpenAI's fields and the parameters of diffusion models."""

import re
from typing import TYPE_CHECKING, Any, Literal

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field

from imagegen_gateway.errors import ApiError
from imagegen_gateway.schemas.fields import body_fields, form_field, form_fields, image_fields, make_body
from imagegen_protocol.limits import MAX_SIDE_PIXELS, MAX_STEPS, MIN_SIDE_PIXELS
from imagegen_protocol.parameters import PARAMETERS

SIZE = r"^(auto|[1-9][0-9]{0,3}x[1-9][0-9]{0,3})$"
_IGNORED = "Accepted for compatibility; ignored."
_MAX_IGNORED = 512

if TYPE_CHECKING:

    class _Parameters(BaseModel):
        """The result of `body_fields`, with the fields that the code reads by name."""

        prompt: str
        model: str | None

    class _Files(BaseModel):
        image: UploadFile | None
        mask: UploadFile | None

    class _Images(BaseModel):
        image: str | None
        images: list[str] | None
        mask: str | None
else:
    _Parameters = make_body("Parameters", body_fields(PARAMETERS))
    _Files = make_body("Files", form_fields(PARAMETERS))
    _Images = make_body("Images", image_fields(PARAMETERS))


class GenerationParameters(_Parameters):
    """The parameters of a request; absent ones have the defaults of the model."""

    model_config = ConfigDict(extra="forbid", strict=True)

    size: str | None = Field(
        None, pattern=SIZE, description="`WIDTHxHEIGHT` in pixels, or `auto`.", examples=["512x512"]
    )
    width: int | None = Field(None, ge=MIN_SIDE_PIXELS, le=MAX_SIDE_PIXELS, description="In place of `size`.")
    height: int | None = Field(None, ge=MIN_SIDE_PIXELS, le=MAX_SIDE_PIXELS, description="In place of `size`.")
    steps: int | None = Field(None, ge=1, le=MAX_STEPS, description="Short for `num_inference_steps`.")
    background: Literal["auto", "opaque"] | None = Field(None, description=_IGNORED)
    moderation: Literal["auto", "low"] | None = Field(None, description=_IGNORED)
    quality: Literal["auto", "standard", "hd", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description=f"{_IGNORED} Use `num_inference_steps`."
    )
    style: Literal["vivid", "natural"] | None = Field(None, description=_IGNORED)
    user: str | None = Field(None, max_length=_MAX_IGNORED, description=_IGNORED)
    safety_identifier: str | None = Field(None, max_length=_MAX_IGNORED, description=_IGNORED)


class ResponseOptions(BaseModel):
    """The format of the response to an OpenAI request."""

    response_format: Literal["url", "b64_json"] | None = Field(None, description="Default: `b64_json`.")
    stream: bool | None = Field(None, description="Respond with server-sent events.")
    partial_images: int | None = Field(
        None, ge=0, le=3, description="Maximum number of previews; requires `stream`."
    )


class GenerateBody(GenerationParameters, ResponseOptions):
    """The body of `POST /v1/images/generations`."""


class EditBody(_Files, GenerationParameters, ResponseOptions):
    """The form of `POST /v1/images/edits`."""

    model_config = ConfigDict(extra="forbid", strict=False)

    images: list[UploadFile] | None = Field(None, alias="image[]", description="`image`, or reference images.")
    input_fidelity: Literal["high", "low"] | None = Field(None, description=_IGNORED)


class JobBody(_Images, GenerationParameters):
    """The body of `POST /v1/jobs`."""

    model_config = ConfigDict(
        json_schema_extra={"x-parameters": [form_field(each) for each in PARAMETERS.values()]},
    )

    webhook_url: str | None = Field(
        None, max_length=2000, pattern=r"^https?://\S+$", description="Called when the job has ended."
    )


class PageQuery(BaseModel):
    """Query parameters that select a page of a list."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(20, ge=1, le=100, description="Maximum number of jobs.")
    after: str | None = Field(None, max_length=64, description="Id of the last job of the previous page.")


def has_size(body: GenerationParameters) -> bool:
    """Return whether a body states the size of the images."""
    return body.size not in (None, "auto") or body.width is not None or body.height is not None


_SIZE_PARTS = re.compile(r"(\d+)x(\d+)")


def options(body: GenerationParameters) -> dict[str, Any]:
    """Return the parameters of a body as the client's `RequestOptions`, without prompt and images.

    Raises `ApiError` 400 if two fields state different values of one parameter.
    """
    given: dict[str, Any] = {}
    for name, parameter in PARAMETERS.items():
        if name == "prompt" or parameter.has_images or not parameter.info.in_http:
            continue
        value = getattr(body, parameter.http_name)
        if value is not None:
            given[name] = [item.model_dump(exclude_none=True) for item in value] if parameter.fields else value
    if body.size is not None and (parts := _SIZE_PARTS.fullmatch(body.size)):
        given["width"], given["height"] = int(parts[1]), int(parts[2])
    for field, name, value in (
        ("width", "width", body.width),
        ("height", "height", body.height),
        ("steps", "num_inference_steps", body.steps),
    ):
        if value is not None and given.setdefault(name, value) != value:
            message = f"{field}: another field of the request states {given[name]}, got {value}"
            raise ApiError(400, "invalid_value", message, param=field)
    return given
