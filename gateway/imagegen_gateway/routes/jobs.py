"""`/v1/jobs`: durable jobs, which survive disconnected clients and restarts of the gateway."""

import asyncio
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response

from imagegen_gateway import sse
from imagegen_gateway.access import ApiKeyDep, ServicesDep, base_url
from imagegen_gateway.admission import HeldResponse
from imagegen_gateway.bodies import BodyRoute
from imagegen_gateway.core.addresses import check_webhook_url
from imagegen_gateway.errors import ApiError, error_responses, not_found, storage_failed
from imagegen_gateway.generation import allowed_options
from imagegen_gateway.input_images import InputImages, decode_base64, read_inputs
from imagegen_gateway.jobs.progress import JobProgress
from imagegen_gateway.jobs.store import Job
from imagegen_gateway.jobs.view import to_event, to_response
from imagegen_gateway.keys import ApiKey
from imagegen_gateway.schemas import responses
from imagegen_gateway.schemas.requests import JobBody, PageQuery, has_size
from imagegen_gateway.services import Services
from imagegen_protocol.declaration import join_images, split_images
from imagegen_protocol.parameters import HEADER_PARAMETERS, IMAGE_PARAMETERS, http_field
from imagegen_protocol.request import make_request
from imagegen_protocol.seeds import random_seed

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=BodyRoute)

_SLICE = 64 * 1024

JobId = Annotated[str, Path(pattern=r"^job_[0-9a-f]{32}$")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="A repeated request with the same key returns the first job instead of creating another.",
    ),
]


@router.post(
    "",
    status_code=202,
    responses={
        200: {"model": responses.Job, "description": "The existing job of this Idempotency-Key."},
        **error_responses(400, 401, 403, 413, 422, 429, 503),
    },
    summary="Create a job",
)
async def create(
    body: JobBody,
    request: Request,
    response: Response,
    services: ServicesDep,
    api_key: ApiKeyDep,
    idempotency_key: IdempotencyKey = None,
) -> responses.Job:
    """Create a job. It is stored before the response, and ends even if the gateway restarts meanwhile."""
    fingerprint = await services.threads.run(api_key.id, _fingerprint, body)
    url = base_url(request, services)
    job = await _find_existing(services, api_key, idempotency_key, fingerprint)
    if job is not None:
        response.status_code = 200
    else:
        job = await _add(body, services, api_key, url, fingerprint, idempotency_key)
        if job is None:  # a concurrent request has used the same idempotency key
            job = await _find_existing(services, api_key, idempotency_key, fingerprint)
            assert job is not None, "the idempotency key is in the database"
            response.status_code = 200
    response.headers["Location"] = f"{url}/v1/jobs/{job.id}"
    return to_response(job, services.jobs.progress(job.id))


@router.get(
    "", response_model=responses.Jobs, responses=error_responses(400, 401, 403, 404, 429, 503), summary="List jobs"
)
async def list_jobs(
    services: ServicesDep,
    api_key: ApiKeyDep,
    page: Annotated[PageQuery, Query()],
) -> Response:
    """List the jobs of the key, newest first."""
    before = None if page.after is None else await _get_own(services, api_key, page.after)
    async with services.lists[api_key.id]:
        jobs = await services.job_store.newest(api_key.id, page.limit + 1, before)
        shown = [(job, services.jobs.progress(job.id)) for job in jobs[: page.limit]]
        content = await services.threads.run(api_key.id, _list_body, shown, len(jobs) > page.limit)
        return HeldResponse(services, api_key, content)


def _list_body(jobs: Sequence[tuple[Job, JobProgress | None]], has_more: bool) -> bytes:
    data = [to_response(job, progress) for job, progress in jobs]
    return responses.Jobs(data=data, has_more=has_more).model_dump_json().encode()


@router.get("/{job_id}", responses=error_responses(400, 401, 403, 404), summary="Get a job")
async def get(job_id: JobId, services: ServicesDep, api_key: ApiKeyDep) -> responses.Job:
    """Get a job. Ended jobs expire."""
    job = await _get_own(services, api_key, job_id)
    return to_response(job, services.jobs.progress(job.id))


@router.delete("/{job_id}", responses=error_responses(400, 401, 403, 404), summary="Cancel a job")
async def cancel(job_id: JobId, services: ServicesDep, api_key: ApiKeyDep) -> responses.Job:
    """Cancel a job and return it; a job that has ended is not changed."""
    await services.jobs.cancel(await _get_own(services, api_key, job_id))
    return to_response(await _get_own(services, api_key, job_id), None)


@router.get(
    "/{job_id}/events",
    response_class=Response,
    responses={
        200: {
            "content": sse.OPENAPI_CONTENT,
            "description": "Events `queued`, `running` and finally `done`; their data is the job with `preview`.",
        },
        **error_responses(400, 401, 403, 404, 429, 503),
    },
    summary="Stream the progress of a job",
)
async def events(job_id: JobId, request: Request, services: ServicesDep, api_key: ApiKeyDep) -> Response:
    """Stream the progress of a job as server-sent events until it ends. The first event is its current state."""
    job = await _get_own(services, api_key, job_id)
    close = services.open_stream(api_key)
    return await sse.open_stream(request, _events(services, job, services.jobs.progress(job.id)), close)


async def _events(services: Services, job: Job, progress: JobProgress | None) -> sse.Events:
    stopping = asyncio.ensure_future(services.stopping.wait())
    sent: bytes | None = None
    try:
        while progress is not None and not progress.finished:
            changed, preview = progress.changed(), progress.preview
            data = to_event(job, progress, None if preview is sent else preview)
            sent = preview
            yield sse.event("running" if data.state == "running" else "queued", data)
            waited: set[asyncio.Future[Any]] = {changed, stopping}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                return  # clients reconnect to the next gateway process
        ended = await services.job_store.get(job.id)
        if ended is not None and ended.finished is not None:
            yield sse.event("done", to_event(ended, None))
    finally:
        stopping.cancel()


async def _get_own(services: Services, api_key: ApiKey, job_id: str) -> Job:
    job = await services.job_store.get(job_id, owner=api_key.id)
    if job is None:
        raise not_found("job", job_id)
    return job


async def _find_existing(services: Services, api_key: ApiKey, key: str | None, fingerprint: str) -> Job | None:
    job = None if key is None else await services.job_store.by_idempotency_key(api_key.id, key)
    if job is not None and job.fingerprint != fingerprint:
        message = "Idempotency-Key: already used with a different body; use a new key"
        raise ApiError(422, "idempotency_key_reused", message, param="Idempotency-Key")
    return job


def _fingerprint(body: JobBody) -> str:
    """Return the hash of a body as JSON with sorted keys.

    Absent fields are left out, so that versions with other parameters compute the same one. Images are encoded in
    slices: the encoder holds the lock of the interpreter until its end.
    """
    fields = body.model_dump(mode="json", exclude_none=True)
    hasher = hashlib.sha256(b"{")
    for index, name in enumerate(sorted(fields)):
        hasher.update(f"{', ' if index else ''}{json.dumps(name)}: ".encode())
        value = fields[name]
        if isinstance(value, str):
            slices = (value[start : start + _SLICE] for start in range(0, len(value), _SLICE))
            hasher.update(b'"')
            for part in slices:
                hasher.update(json.dumps(part)[1:-1].encode())
            hasher.update(b'"')
        else:
            hasher.update(json.dumps(value, sort_keys=True).encode())
    hasher.update(b"}")
    return hasher.hexdigest()


async def _add(
    body: JobBody, services: Services, api_key: ApiKey, url: str, fingerprint: str, idempotency_key: str | None
) -> Job | None:
    """Validate, store and start a job; return None if a concurrent request has used its `idempotency_key`."""
    if body.webhook_url is not None:
        try:
            check_webhook_url(body.webhook_url, services.settings.webhook_networks)
        except ValueError as error:
            raise ApiError(400, "invalid_value", f"webhook_url: {error}", param="webhook_url") from error
    inputs = await services.threads.run(api_key.id, _inputs, body)
    given = await allowed_options(services, api_key, body, inputs)
    given.setdefault("seed", random_seed())
    _check(body.prompt, given, list(inputs.frames))
    job = None
    size = sum(map(len, inputs.frames.values()))
    _check_quota(services, api_key, size)
    # Nothing was awaited since the check, so concurrent requests can't exceed the quota.
    services.job_quota.add(api_key.id, size)
    try:
        job = await _store(
            services,
            inputs.frames,
            owner=api_key.id,
            prompt=body.prompt,
            options=given,
            base_url=url,
            fingerprint=fingerprint,
            idempotency_key=idempotency_key,
            webhook_url=body.webhook_url,
        )
    finally:
        if job is None:
            services.job_quota.remove(api_key.id, size)
    if job is not None:
        services.jobs.start(job)
    return job


def _check_quota(services: Services, api_key: ApiKey, size: int) -> None:
    """Raise `ApiError` 429 or 503 if the key or the gateway has too many unfinished jobs."""
    quota = services.job_quota
    match quota.find_excess(api_key.id, size):
        case "jobs":
            message = f"the gateway has its maximum of {quota.max_jobs} unfinished jobs; retry later"
            raise ApiError(503, "too_many_jobs", message, retry_after=30)
        case "key_jobs":
            services.metrics.refusals.labels(reason="jobs").inc()
            message = f"this key has its maximum of {quota.max_jobs_per_key} unfinished jobs"
            raise ApiError(429, "too_many_jobs", message, retry_after=30)
        case "key_bytes":
            services.metrics.refusals.labels(reason="jobs").inc()
            message = (
                f"the unfinished jobs of this key have their maximum of {quota.max_bytes_per_key} image bytes"
            )
            raise ApiError(429, "too_many_jobs", message, retry_after=30)


async def _store(services: Services, inputs: Mapping[str, bytes], **job: Any) -> Job | None:
    """Store a job and its input images; return None if its `idempotency_key` is in use. Raises `ApiError` 503."""
    token = services.images.new_token()
    try:
        for name, data in inputs.items():
            await services.images.write(f"{token}-{name}", data)
    except Exception as error:
        await _remove(services, token, inputs)
        raise storage_failed("store the images of this job", error) from error
    sizes = {name: len(data) for name, data in inputs.items()}
    try:
        stored = await services.job_store.add(inputs=sizes, token=token, now=time.time(), **job)
    except sqlite3.Error:
        await _remove(services, token, inputs)
        raise
    if stored is None:
        await _remove(services, token, inputs)
    return stored


async def _remove(services: Services, token: str, inputs: Iterable[str]) -> None:
    for name in inputs:
        with suppress(Exception):  # the storage may fail; a file without a job is never read
            await services.images.remove(f"{token}-{name}")


def _inputs(body: JobBody) -> InputImages:
    """Return the checked input images of a job. Raises `ApiError`."""
    given = {name: getattr(body, each.http_name, None) for name, each in IMAGE_PARAMETERS.items()}
    _, texts = split_images(given, IMAGE_PARAMETERS)
    fields = {path: http_field(path.partition("[")[0]) for path in texts}
    files = {path: (fields[path], decode_base64(fields[path], text)) for path, text in texts.items()}
    return read_inputs(files, sets_size=not has_size(body))


def _check(prompt: str, options: dict[str, Any], inputs: list[str]) -> None:
    """Raise `InvalidRequestError` for a request that every worker would reject."""
    fields = {name: value for name, value in options.items() if name not in HEADER_PARAMETERS}
    if inputs:
        fields["inputs"] = inputs
        fields |= split_images(join_images(dict.fromkeys(inputs)), IMAGE_PARAMETERS)[0]
    make_request(prompt=prompt, **fields)
