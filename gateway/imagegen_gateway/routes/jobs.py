"""`/v1/jobs`: accepted at once, made whatever happens, fetched when it suits."""

import asyncio
import hashlib
import json
import time
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response

from imagegen_gateway import sse
from imagegen_gateway.access import TheCaller, TheServices, base_url
from imagegen_gateway.core.addresses import check_webhook_url
from imagegen_gateway.errors import ApiError, not_found, responses, storage_failed
from imagegen_gateway.generation import allowed_options
from imagegen_gateway.input_images import decode_base64, read_input
from imagegen_gateway.jobs.live import Live
from imagegen_gateway.jobs.store import Job
from imagegen_gateway.jobs.view import show, show_event
from imagegen_gateway.keys import Caller
from imagegen_gateway.schemas import answers
from imagegen_gateway.schemas.requests import JobBody, Page
from imagegen_gateway.services import Services
from imagegen_protocol.parameters import HEADER_PARAMETERS, IMAGE_PARAMETERS
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


@router.post(
    "",
    status_code=202,
    responses={
        200: {"model": answers.Job, "description": "The job that this Idempotency-Key gave before."},
        **responses(400, 401, 403, 413, 422, 429, 503),
    },
    summary="Take a job in",
)
async def create(
    body: JobBody,
    request: Request,
    response: Response,
    services: TheServices,
    caller: TheCaller,
    idempotency_key: IdempotencyKey = None,
) -> answers.Job:
    """Take a job in: it is kept before this answers, and ends however often the gateway dies."""
    # Without absent fields: a gateway of another version, which has other parameters, gets the same.
    said = json.dumps(body.model_dump(mode="json", exclude_none=True), sort_keys=True)
    fingerprint = hashlib.sha256(said.encode()).hexdigest()
    job = await _known(services, caller, idempotency_key, fingerprint)
    if job is None:
        services.admit(caller)
        if services.runner.unfinished >= services.settings.max_jobs:
            raise ApiError(503, "too_many_jobs", "too many jobs wait here; ask again later", retry_after=30)
        job = await _take_in(body, services, caller, base_url(request, services), fingerprint, idempotency_key)
        if job is None:  # the same key was used a moment ago
            job = await _known(services, caller, idempotency_key, fingerprint)
            assert job is not None, "a key that is taken has its job"
            response.status_code = 200
        else:
            services.runner.begin(job)
    else:
        response.status_code = 200
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return show(job, services.runner.live(job.id))


@router.get("", responses=responses(401, 403, 404, 422), summary="List jobs")
async def list_jobs(
    services: TheServices,
    caller: TheCaller,
    page: Annotated[Page, Query()],
) -> answers.Jobs:
    """List one's own jobs, the newest first."""
    edge = None if page.after is None else await _own(services, caller, page.after)
    jobs = await services.store.newest(caller.id, page.limit + 1, edge)
    shown = [show(job, services.runner.live(job.id)) for job in jobs[: page.limit]]
    return answers.Jobs(data=shown, has_more=len(jobs) > page.limit)


@router.get("/{job_id}", responses=responses(401, 403, 404, 422), summary="Look at a job")
async def get(job_id: JobId, services: TheServices, caller: TheCaller) -> answers.Job:
    """Look at a job; one that has ended is kept for a while."""
    job = await _own(services, caller, job_id)
    return show(job, services.runner.live(job.id))


@router.delete("/{job_id}", responses=responses(401, 403, 404, 422), summary="Cancel a job")
async def cancel(job_id: JobId, services: TheServices, caller: TheCaller) -> answers.Job:
    """Cancel a job, and return it; one that has ended stays as it is."""
    await services.runner.cancel(await _own(services, caller, job_id))
    return show(await _own(services, caller, job_id), None)


@router.get(
    "/{job_id}/events",
    response_class=Response,
    responses={
        200: {
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
            "description": "Events `queued`, `running`, then `done`; the data is the job, with `preview`.",
        },
        **responses(401, 403, 404, 422, 429, 503),
    },
    summary="Follow a job",
)
async def events(job_id: JobId, request: Request, services: TheServices, caller: TheCaller) -> Response:
    """Follow a job with server-sent events until it has ended; whoever comes late begins with how it stands."""
    job = await _own(services, caller, job_id)
    close = services.open_stream(caller)
    return await sse.open_stream(request, _events(services, job, services.runner.live(job.id)), close)


async def _events(services: Services, job: Job, live: Live | None) -> sse.Events:
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
        found = await services.store.get(job.id)
        if found is not None and found.finished is not None:
            yield sse.event("done", show_event(found, None))
    finally:
        stopping.cancel()


async def _own(services: Services, caller: Caller, job_id: str) -> Job:
    job = await services.store.get(job_id, owner=caller.id)
    if job is None:
        raise not_found("job", job_id)
    return job


async def _known(services: Services, caller: Caller, key: str | None, fingerprint: str) -> Job | None:
    job = None if key is None else await services.store.by_idempotency_key(caller.id, key)
    if job is not None and job.fingerprint != fingerprint:
        message = "Idempotency-Key: it was used for another job; take a new one"
        raise ApiError(422, "idempotency_key_reused", message, param="Idempotency-Key")
    return job


async def _take_in(
    body: JobBody, services: Services, caller: Caller, url: str, fingerprint: str, idempotency_key: str | None
) -> Job | None:
    """Check a job and keep it; None if its `idempotency_key` is taken meanwhile."""
    asked = allowed_options(services, caller, body)
    asked.setdefault("seed", random_seed())
    if body.webhook_url is not None:
        try:
            check_webhook_url(body.webhook_url, services.settings.webhook_networks)
        except ValueError as error:
            raise ApiError(422, "invalid_value", f"webhook_url: {error}", param="webhook_url") from error
    inputs = await asyncio.to_thread(_inputs, body, caller)
    _check(body.prompt, asked, list(inputs))
    token = services.results.new_token()
    try:
        for name, data in inputs.items():
            await services.results.write(f"{token}-{name}", data)
    except Exception as error:
        raise storage_failed("keep the images of this job", error) from error
    job = await services.store.add(
        owner=caller.id,
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
            await services.results.remove(f"{token}-{name}")
    return job


def _inputs(body: JobBody, caller: Caller) -> dict[str, bytes]:
    found = {}
    for name, parameter in IMAGE_PARAMETERS.items():
        field = parameter.http_name
        if (text := getattr(body, field, None)) is not None:
            sets_size = name == "image" and body.size in (None, "auto")
            found[name] = read_input(name, field, decode_base64(field, text), caller.limits, sets_size=sets_size)
    return found


def _check(prompt: str, asked: dict[str, Any], inputs: list[str]) -> None:
    """Raise `InvalidRequestError` for what any worker would refuse: now, while somebody hears it."""
    fields = {name: value for name, value in asked.items() if name not in HEADER_PARAMETERS}
    if inputs:
        fields["inputs"] = inputs
    make_request(prompt=prompt, **fields)
