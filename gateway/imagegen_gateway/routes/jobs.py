"""`/v1/jobs`: accepted at once, made whatever happens, fetched when it suits."""

import asyncio
import hashlib
import time
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response

from imagegen_gateway import sse
from imagegen_gateway.access import ApiKeyDep, ServicesDep, base_url
from imagegen_gateway.core.addresses import check_webhook_url
from imagegen_gateway.errors import ApiError, error_responses, not_found, storage_failed
from imagegen_gateway.generation import allowed_options
from imagegen_gateway.input_images import check_image, decode_base64, mask_image
from imagegen_gateway.jobs.progress import JobProgress
from imagegen_gateway.jobs.store import Job
from imagegen_gateway.jobs.view import show, show_event
from imagegen_gateway.keys import ApiKey
from imagegen_gateway.schemas import responses
from imagegen_gateway.schemas.requests import JobBody, Page
from imagegen_gateway.services import Services
from imagegen_protocol.request import make_request
from imagegen_protocol.seeds import random_seed

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

JobId = Annotated[str, Path(pattern=r"^job_[0-9a-f]{32}$")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1, max_length=255, description="The same key gives the same job back, however often it is sent."
    ),
]
_IN_HEADER = ("model", "priority", "timeout_seconds")
"""Options that are no part of a request's body on the wire."""


@router.post(
    "",
    status_code=202,
    responses={
        200: {"model": responses.Job, "description": "The job that this Idempotency-Key gave before."},
        **error_responses(400, 401, 403, 413, 422, 429, 503),
    },
    summary="Take a job in",
)
async def create(
    body: JobBody,
    request: Request,
    response: Response,
    services: ServicesDep,
    api_key: ApiKeyDep,
    idempotency_key: IdempotencyKey = None,
) -> responses.Job:
    """Take a job in: it is kept before this answers, and ends however often the gateway dies."""
    fingerprint = hashlib.sha256(body.model_dump_json().encode()).hexdigest()
    job = await _known(services, api_key, idempotency_key, fingerprint)
    if job is None:
        services.admit(api_key)
        if services.jobs.unfinished >= services.settings.max_jobs:
            raise ApiError(503, "too_many_jobs", "too many jobs wait here; ask again later", retry_after=30)
        job = await _take_in(body, services, api_key, base_url(request, services), fingerprint, idempotency_key)
        if job is None:  # the same key was used a moment ago
            job = await _known(services, api_key, idempotency_key, fingerprint)
            assert job is not None, "a key that is taken has its job"
            response.status_code = 200
        else:
            services.jobs.begin(job)
    else:
        response.status_code = 200
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return show(job, services.jobs.live(job.id))


@router.get("", responses=error_responses(401, 403, 404, 422), summary="List jobs")
async def list_jobs(
    services: ServicesDep,
    api_key: ApiKeyDep,
    page: Annotated[Page, Query()],
) -> responses.Jobs:
    """List one's own jobs, the newest first."""
    edge = None if page.after is None else await _own(services, api_key, page.after)
    jobs = await services.job_store.newest(api_key.id, page.limit + 1, edge)
    shown = [show(job, services.jobs.live(job.id)) for job in jobs[: page.limit]]
    return responses.Jobs(data=shown, has_more=len(jobs) > page.limit)


@router.get("/{job_id}", responses=error_responses(401, 403, 404, 422), summary="Look at a job")
async def get(job_id: JobId, services: ServicesDep, api_key: ApiKeyDep) -> responses.Job:
    """Look at a job; one that has ended is kept for a while."""
    job = await _own(services, api_key, job_id)
    return show(job, services.jobs.live(job.id))


@router.delete("/{job_id}", responses=error_responses(401, 403, 404, 422), summary="Cancel a job")
async def cancel(job_id: JobId, services: ServicesDep, api_key: ApiKeyDep) -> responses.Job:
    """Cancel a job, and return it; one that has ended stays as it is."""
    await services.jobs.cancel(await _own(services, api_key, job_id))
    return show(await _own(services, api_key, job_id), None)


@router.get(
    "/{job_id}/events",
    response_class=Response,
    responses={
        200: {
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
            "description": "Events `queued`, `running`, then `done`; the data is the job, with `preview`.",
        },
        **error_responses(401, 403, 404, 422, 429, 503),
    },
    summary="Follow a job",
)
async def events(job_id: JobId, request: Request, services: ServicesDep, api_key: ApiKeyDep) -> Response:
    """Follow a job with server-sent events until it has ended; whoever comes late begins with how it stands."""
    job = await _own(services, api_key, job_id)
    close = services.open_stream(api_key)
    return await sse.open_stream(request, _events(services, job, services.jobs.live(job.id)), close)


async def _events(services: Services, job: Job, live: JobProgress | None) -> sse.Events:
    stopping = asyncio.ensure_future(services.stopping.wait())
    told: bytes | None = None
    try:
        while live is not None and not live.over:
            news, preview = live.news(), live.preview
            shown = show_event(job, live, None if preview is told else preview)
            told = preview
            yield sse.event("running" if shown.state == "running" else "queued", shown)
            waited: set[asyncio.Future[Any]] = {news, stopping}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                return  # it is told again by the next gateway
        found = await services.job_store.get(job.id)
        if found is not None and found.finished is not None:
            yield sse.event("done", show_event(found, None))
    finally:
        stopping.cancel()


async def _own(services: Services, api_key: ApiKey, job_id: str) -> Job:
    job = await services.job_store.get(job_id, owner=api_key.id)
    if job is None:
        raise not_found("job", job_id)
    return job


async def _known(services: Services, api_key: ApiKey, key: str | None, fingerprint: str) -> Job | None:
    job = None if key is None else await services.job_store.by_idempotency_key(api_key.id, key)
    if job is not None and job.fingerprint != fingerprint:
        message = "Idempotency-Key: it was used for another job; take a new one"
        raise ApiError(422, "idempotency_key_reused", message, param="Idempotency-Key")
    return job


async def _take_in(
    body: JobBody, services: Services, api_key: ApiKey, url: str, fingerprint: str, idempotency_key: str | None
) -> Job | None:
    """Check a job and keep it; None if its `idempotency_key` is taken meanwhile."""
    asked = allowed_options(services, api_key, body)
    asked.setdefault("seed", random_seed())
    if body.webhook_url is not None:
        try:
            check_webhook_url(body.webhook_url, services.settings.webhook_networks)
        except ValueError as error:
            raise ApiError(422, "invalid_value", f"webhook_url: {error}", param="webhook_url") from error
    inputs = await asyncio.to_thread(_inputs, body, api_key)
    _check(body.prompt, asked, list(inputs))
    token = services.images.new_token()
    try:
        for name, data in inputs.items():
            await services.images.write(f"{token}-{name}", data)
    except Exception as error:
        raise storage_failed("keep the images of this job", error) from error
    job = await services.job_store.add(
        owner=api_key.id,
        prompt=body.prompt,
        options=asked,
        inputs=list(inputs),
        token=token,
        base_url=url,
        fingerprint=fingerprint,
        idempotency_key=idempotency_key,
        webhook_url=body.webhook_url,
        now=time.time(),
    )
    if job is None:
        for name in inputs:
            await services.images.remove(f"{token}-{name}")
    return job


def _inputs(body: JobBody, api_key: ApiKey) -> dict[str, bytes]:
    found = {}
    if body.image is not None:
        bounded = body.size in (None, "auto")
        found["image"] = check_image("image", decode_base64("image", body.image), api_key.limits, bounded=bounded)
    if body.mask is not None:
        mask = check_image("mask", decode_base64("mask", body.mask), api_key.limits, bounded=False)
        found["mask_image"] = mask_image(mask)
    return found


def _check(prompt: str, asked: dict[str, Any], inputs: list[str]) -> None:
    """Raise `InvalidRequestError` for what any worker would refuse: now, while somebody hears it."""
    fields = {name: value for name, value in asked.items() if name not in _IN_HEADER}
    if inputs:
        fields["inputs"] = inputs
    make_request(prompt=prompt, **fields)
