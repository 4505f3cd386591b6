"""What is answered."""

from typing import Literal

from pydantic import BaseModel

from imagegen_gateway.errors import ErrorObject

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class Image(BaseModel):
    """One image: in base64, or where it is for a while."""

    b64_json: str | None = None
    url: str | None = None
    seed: int


class Images(BaseModel):
    """The answer to an OpenAI request."""

    created: int
    data: list[Image]
    background: Literal["opaque"] = "opaque"
    output_format: str
    size: str
    model: str


class Parameter(BaseModel):
    """What may be said for one parameter of a model, as JSON Schema means it; what is not bounded is absent."""

    default: int | float | str | None = None
    """What the model takes where nothing is said."""
    minimum: int | float | None = None
    exclusive_minimum: int | float | None = None
    maximum: int | float | None = None
    multiple_of: int | None = None
    enum: list[str] | None = None
    """Of LoRAs: those that were there when the model was loaded."""
    max_length: int | None = None
    max_items: int | None = None


class Model(BaseModel):
    """A model that the fleet serves."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """When the gateway started."""
    owned_by: Literal["imagegen"] = "imagegen"
    default: bool
    """Whether a request takes it that names none."""
    parameters: dict[str, Parameter] | None = None
    """What the model takes, within what the key may; absent until a worker has loaded it, and told."""


class Models(BaseModel):
    """The models that the key may use."""

    object: Literal["list"] = "list"
    data: list[Model]


class StoredImage(BaseModel):
    """One image of a job; `url` is good until the job's `expires_at`, for whoever has it."""

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
    """When it is forgotten, with its images; set when it has ended."""
    place: int | None = None
    """While it is queued: how many requests go before it, at most."""
    seconds_to_start: float | None = None
    """While it is queued: an estimate; null while unknown."""
    step: int | None = None
    steps: int | None = None
    images: list[StoredImage] | None
    error: ErrorObject | None
    webhook_url: str | None


class JobEvent(Job):
    """The data of each event of `GET /v1/jobs/{id}/events`: the job, and what it looks like so far."""

    preview: str | None = None
    """While it runs, and where the model can make one: a small picture as a `data:` URL; null: as before."""


class Jobs(BaseModel):
    """Jobs, the newest first."""

    object: Literal["list"] = "list"
    data: list[Job]
    has_more: bool
