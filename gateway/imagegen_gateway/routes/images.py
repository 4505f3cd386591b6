"""`/v1/images`: OpenAI's images API."""

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response, UploadFile

from imagegen_gateway import sse
from imagegen_gateway.access import ApiKeyDep, ServicesDep
from imagegen_gateway.bodies import BodyRoute
from imagegen_gateway.errors import ApiError, error_responses
from imagegen_gateway.generation import generate_response
from imagegen_gateway.input_images import InputImages, read_inputs
from imagegen_gateway.schemas.requests import EditBody, GenerateBody, has_size
from imagegen_gateway.schemas.responses import Images
from imagegen_protocol.limits import MAX_REFERENCE_IMAGES

router = APIRouter(prefix="/v1/images", tags=["images"], route_class=BodyRoute)

_RESPONSES = {
    200: {
        "model": Images,
        "description": "The images; with `stream`, the events `….partial_image` and `….completed`.",
        "content": sse.OPENAPI_CONTENT,
    },
    **error_responses(400, 401, 403, 404, 413, 429, 500, 503, 504),
}


@router.post(
    "/generations", responses=_RESPONSES, response_class=Response, summary="Generate images from a prompt"
)
async def generate(body: GenerateBody, request: Request, services: ServicesDep, api_key: ApiKeyDep) -> Response:
    """Generate images from a prompt. Closing the connection cancels the request."""
    return await generate_response(services, api_key, request, body, InputImages(), "image_generation")


@router.post("/edits", responses=_RESPONSES, response_class=Response, summary="Edit an image")
async def edit(
    body: Annotated[EditBody, Form(media_type="multipart/form-data")],
    request: Request,
    services: ServicesDep,
    api_key: ApiKeyDep,
) -> Response:
    """Generate images from a prompt and an image; a mask limits the change to the masked area.

    Several images (`image` or `image[]`, repeated) are references, for models that accept them.

    Closing the connection cancels the request.
    """
    files = {path: ("image", file) for path, file in _images(body).items()}
    if body.mask is not None:
        files["mask_image"] = ("mask", body.mask)
    given = {path: (field, await file.read()) for path, (field, file) in files.items()}
    inputs = await services.threads.run(api_key.id, read_inputs, given, sets_size=not has_size(body))
    return await generate_response(services, api_key, request, body, inputs, "image_edit")


def _images(body: EditBody) -> dict[str, UploadFile]:
    """Return the image of the form, or its references, by their paths in a request. Raises `ApiError` 400."""
    images = [*([body.image] if body.image is not None else []), *(body.images or [])]
    if len(images) == 1:
        return {"image": images[0]}
    if not 0 < len(images) <= MAX_REFERENCE_IMAGES:
        code = "invalid_value" if images else "missing_field"
        message = f"image: expected 1 to {MAX_REFERENCE_IMAGES} images, got {len(images)}"
        raise ApiError(400, code, message, param="image")
    return {f"images[{index}]": image for index, image in enumerate(images)}
