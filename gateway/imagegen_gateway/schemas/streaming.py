"""Events of image streams: OpenAI's, with `seed`, `image_index` and `model` added."""

from pydantic import BaseModel


class Usage(BaseModel):
    """Token counts, always 0; OpenAI's clients require them."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: dict[str, int] = {"image_tokens": 0, "text_tokens": 0}


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
