"""`/v1/images`: as OpenAI has it."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response, UploadFile

from imagegen_gateway.access import TheCaller, TheServices
from imagegen_gateway.errors import ApiError, responses
from imagegen_gateway.generation import answer
from imagegen_gateway.input_images import read_input
from imagegen_gateway.schemas.answers import Images
from imagegen_gateway.schemas.requests import EditBody, GenerateBody
from imagegen_protocol.parameters import IMAGE_PARAMETERS

router = APIRouter(prefix="/v1/images", tags=["images"])

_RESPONSES = {
    200: {
        "model": Images,
        "description": "The images; with `stream` the events `….partial_image` and `….completed`.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    **responses(400, 401, 403, 404, 413, 422, 429, 500, 503, 504),
}


@router.post("/generations", responses=_RESPONSES, response_class=Response, summary="Make images of a prompt")
async def generate(body: GenerateBody, request: Request, services: TheServices, caller: TheCaller) -> Response:
    """Make images of a prompt. Hanging up cancels."""
    return await answer(services, caller, request, body, body, {}, "image_generation")


@router.post(
    "/edits", responses=_RESPONSES, response_class=Response, summary="Make images of a prompt and an image"
)
async def edit(
    body: Annotated[EditBody, Form(media_type="multipart/form-data")],
    request: Request,
    services: TheServices,
    caller: TheCaller,
) -> Response:
    """Start from an image; with a mask, only what it marks is made anew. Hanging up cancels."""
    files = {"image": _image(body)}
    for name, parameter in IMAGE_PARAMETERS.items():
        file = getattr(body, parameter.http_name, None)
        if file is not None:
            files.setdefault(name, file)
    inputs = {}
    for name, file in files.items():
        sets_size = name == "image" and body.size in (None, "auto")
        field = IMAGE_PARAMETERS[name].http_name
        data = await file.read()
        inputs[name] = await asyncio.to_thread(read_input, name, field, data, caller.limits, sets_size=sets_size)
    return await answer(services, caller, request, body, body, inputs, "image_edit")


def _image(body: EditBody) -> UploadFile:
    given = [*([body.image] if body.image is not None else []), *(body.images or [])]
    if len(given) != 1:
        code = "invalid_value" if given else "missing_field"
        raise ApiError(422, code, f"image: expected one image, got {len(given)}", param="image")
    return given[0]
