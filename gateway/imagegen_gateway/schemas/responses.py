"""Response bodies."""

from typing import Literal

from pydantic import BaseModel

from imagegen_gateway.errors import ErrorObject

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class Usage(BaseModel):
    """Token counts, always 0; OpenAI's clients require them."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: dict[str, int] = {"image_tokens": 0, "text_tokens": 0}


class Image(BaseModel):
    """One image: as base64, or as a URL that expires."""

    b64_json: str | None = None
    url: str | None = None
    seed: int


class Images(BaseModel):
    """The response to an OpenAI request."""

    created: int
    data: list[Image]
    background: Literal["opaque"] = "opaque"
    output_format: str
    size: str
    model: str
    usage: Usage = Usage()
    warnings: list[str] | None = None
    """What had no effect on the images or changed them, such as a truncated prompt; absent if nothing."""


class Parameter(BaseModel):
    """The accepted values of one parameter, in terms of JSON Schema; absent fields do not limit it."""

    default: bool | int | float | str | None = None
    """Value used if a request does not state one."""
    minimum: int | float | None = None
    exclusive_minimum: int | float | None = None
    maximum: int | float | None = None
    multiple_of: int | None = None
    enum: list[str] | None = None
    """Allowed values; for LoRAs, those that existed when the model was loaded."""
    min_length: int | None = None
    max_length: int | None = None
    pattern: str | None = None
    max_items: int | None = None


class Model(BaseModel):
    """A model that the fleet serves."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """Time at which the gateway started."""
    owned_by: Literal["imagegen"] = "imagegen"
    default: bool
    """Whether requests without a model use this one."""
    alias_of: str | None = None
    """Model that requests with this name use; absent if it is the model's own name."""
    parameters: dict[str, Parameter] | None = None
    """Accepted parameters within the limits of the key; absent until a worker has loaded the model."""


class Models(BaseModel):
    """The models that the key can use."""

    object: Literal["list"] = "list"
    data: list[Model]


class StoredImage(BaseModel):
    """One image of a job; its `url` needs no key and is valid until the job's `expires_at`."""

    url: str
    seed: int
    width: int
    height: int
    format: str


class Job(BaseModel):
    """A job. Times are seconds since 1970."""

    id: str
    object: Literal["job"] = "job"
    state: State
    prompt: str
    model: str | None
    seed: int
    n: int
    created_at: int
    started_at: int | None
    finished_at: int | None
    expires_at: int | None
    """Time at which the job and its images are deleted; null until the job has ended."""
    place: int | None = None
    """Maximum number of requests ahead of it in the queue, while it is queued."""
    seconds_to_start: float | None = None
    """Estimated time until it starts, while it is queued; null while unknown."""
    step: int | None = None
    steps: int | None = None
    images: list[StoredImage] | None
    warnings: list[str] | None = None
    """What had no effect on the images or changed them, such as a truncated prompt; null if nothing."""
    error: ErrorObject | None
    webhook_url: str | None


class JobEvent(Job):
    """The data of the events of `GET /v1/jobs/{id}/events`: the job and a preview."""

    preview: str | None = None
    """Small image as a `data:` URL, while the job runs and if the model supports it; null if unchanged."""


class Jobs(BaseModel):
    """Jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[Job]
    has_more: bool
