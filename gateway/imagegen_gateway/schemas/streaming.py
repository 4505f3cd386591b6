"""Events of image streams: OpenAI's, with `seed`, `image_index` and `model` added."""

from pydantic import BaseModel

from imagegen_gateway.schemas.responses import Usage


class PartialImage(BaseModel):
    """A preview: `image_generation.partial_image` or `image_edit.partial_image`."""

    type: str
    b64_json: str
    created_at: int
    background: str = "opaque"
    output_format: str
    quality: str = "auto"
    size: str = "auto"
    partial_image_index: int


class CompletedImage(BaseModel):
    """A finished image: `image_generation.completed` or `image_edit.completed`."""

    type: str
    b64_json: str
    created_at: int
    background: str = "opaque"
    output_format: str
    quality: str = "auto"
    size: str
    usage: Usage = Usage()
    seed: int
    image_index: int
    model: str
    warnings: list[str] | None = None
