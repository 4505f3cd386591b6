"""`/v1/images`: as OpenAI has it."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response, UploadFile

from imagegen_gateway.access import ApiKeyDep, ServicesDep
from imagegen_gateway.errors import ApiError, error_responses
from imagegen_gateway.generation import answer
from imagegen_gateway.input_images import check_image, mask_image
from imagegen_gateway.schemas.requests import EditBody, GenerateBody
from imagegen_gateway.schemas.responses import Images

router = APIRouter(prefix="/v1/images", tags=["images"])

_RESPONSES = {
    200: {
        "model": Images,
        "description": "The images; with `stream` the events `….partial_image` and `….completed`.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    **error_responses(400, 401, 403, 404, 413, 422, 429, 500, 503, 504),
}


@router.post("/generations", responses=_RESPONSES, response_class=Response, summary="Make images of a prompt")
async def generate(body: GenerateBody, request: Request, services: ServicesDep, api_key: ApiKeyDep) -> Response:
    """Make images of a prompt. Hanging up cancels."""
    return await answer(services, api_key, request, body, body, {}, "image_generation")


@router.post(
    "/edits", responses=_RESPONSES, response_class=Response, summary="Make images of a prompt and an image"
)
async def edit(
    body: Annotated[EditBody, Form(media_type="multipart/form-data")],
    request: Request,
    services: ServicesDep,
    api_key: ApiKeyDep,
) -> Response:
    """Start from an image; with a mask, only what it marks is made anew. Hanging up cancels."""
    bounded = body.size in (None, "auto")
    image = check_image("image", await _image(body).read(), api_key.limits, bounded=bounded)
    inputs = {"image": image}
    if body.mask is not None:
        mask = check_image("mask", await body.mask.read(), api_key.limits, bounded=False)
        inputs["mask_image"] = await asyncio.to_thread(mask_image, mask)
    return await answer(services, api_key, request, body, body, inputs, "image_edit")


def _image(body: EditBody) -> UploadFile:
    given = [*([body.image] if body.image is not None else []), *(body.images or [])]
    if len(given) != 1:
        code = "invalid_value" if given else "missing_field"
        raise ApiError(422, code, f"image: expected one image, got {len(given)}", param="image")
    return given[0]
