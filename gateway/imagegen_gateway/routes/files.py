"""`/v1/files`: stored images, for clients that know their names."""

import time
from typing import Annotated

from fastapi import APIRouter, Path, Response

from imagegen_gateway.access import ServicesDep
from imagegen_gateway.errors import error_responses, not_found, storage_failed
from imagegen_gateway.paced_response import PacedResponse

router = APIRouter(prefix="/v1/files", tags=["files"])

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_CONTENT = dict.fromkeys(("image/png", "image/jpeg", "image/webp"), _BINARY)


@router.get(
    "/{name}",
    response_class=Response,
    responses={200: {"content": _CONTENT, "description": "The image."}, **error_responses(400, 404, 503)},
    summary="Fetch an image",
)
async def fetch(
    name: Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{32,40}\.(png|jpeg|webp)$")], services: ServicesDep
) -> Response:
    """Fetch an image by its name. The name is a secret, so no key is required."""
    try:
        found = await services.images.find(name, time.time())
    except Exception as error:
        raise storage_failed("fetch this image", error) from error
    if found is None:
        raise not_found("file", name)
    media_type, size = found
    headers = {
        "Cache-Control": "private, immutable",
        "Content-Type": media_type,
        # Browsers must not interpret an image as HTML.
        "X-Content-Type-Options": "nosniff",
    }
    return PacedResponse(services.images.read_parts(name, size), headers, size)
