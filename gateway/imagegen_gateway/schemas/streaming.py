"""The events of a stream of images, as OpenAI has them; `seed`, `image_index` and `model` are ours."""

from pydantic import BaseModel


class Usage(BaseModel):
    """Tokens, of which nothing here is made; clients expect the numbers."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: dict[str, int] = {"image_tokens": 0, "text_tokens": 0}


class PartialImage(BaseModel):
    """A small picture on the way: `image_generation.partial_image` or `image_edit.partial_image`."""

    type: str
    b64_json: str
    created_at: int
    background: str = "opaque"
    output_format: str
    quality: str = "auto"
    size: str = "auto"
    partial_image_index: int


class CompletedImage(BaseModel):
    """One image that is done: `image_generation.completed` or `image_edit.completed`."""

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
