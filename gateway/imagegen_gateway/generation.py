"""Requests that are answered while their caller waits: in one piece, or as a stream."""

import base64
import time
from collections.abc import Mapping
from contextlib import ExitStack, aclosing
from typing import Any

from fastapi import Request, Response
from fastapi.sse import KEEPALIVE_COMMENT

from imagegen_client import AsyncJob, GenerationResult
from imagegen_gateway import sse
from imagegen_gateway.access import base_url
from imagegen_gateway.core.limits import Refusal, refusal, with_defaults
from imagegen_gateway.core.partials import Partials
from imagegen_gateway.errors import ApiError, storage_failed
from imagegen_gateway.keys import Caller
from imagegen_gateway.results import MEDIA_TYPES
from imagegen_gateway.schemas import answers, streaming
from imagegen_gateway.schemas.requests import Answering, Drawing, options
from imagegen_gateway.services import Services


def allowed_options(services: Services, caller: Caller, body: Drawing) -> dict[str, Any]:
    """Return what a body asks for, the key's defaults filled in. Raises `ApiError` 403 for what it may not."""
    asked = options(body)
    if (found := refusal(caller.limits, asked)) is not None:
        raise not_allowed(services, found)
    return with_defaults(caller.limits, asked)


def not_allowed(services: Services, found: Refusal) -> ApiError:
    """Return the answer to a key that asks for more than it may."""
    services.metrics.refused.labels(reason="limit").inc()
    return ApiError(403, "not_allowed", found.message, param=found.field)


async def answer(
    services: Services,
    caller: Caller,
    request: Request,
    body: Drawing,
    how: Answering,
    inputs: Mapping[str, bytes],
    kind: str,
) -> Response:
    """Have images made and answer with them; `kind` names a stream's events: `image_generation`, `image_edit`."""
    asked = allowed_options(services, caller, body)
    if how.partial_images and not how.stream:
        raise ApiError(422, "invalid_value", "partial_images: needs stream", param="partial_images")
    if how.stream and how.response_format == "url":
        message = "response_format: a stream has its images in it; leave url out"
        raise ApiError(422, "invalid_value", message, param="response_format")
    with ExitStack() as stack:
        stack.enter_context(services.admitted(caller))
        await services.fleet.require_workers()
        client = stack.enter_context(services.fleet.client(caller.id))
        wanted = how.partial_images or 0
        # A stream starts when a worker begins the request, which only progress reports.
        job = client.submit(body.prompt, progress=bool(how.stream), preview=bool(wanted), **{**asked, **inputs})
        stack.callback(job.cancel)
        if how.stream:
            events = _events(job, kind, Partials(wanted))
            return await sse.open_stream(request, events, stack.pop_all().close)
        try:
            result = await sse.unless_gone(request, job.result())
        except sse.HungUpError:
            return Response(status_code=499)
        return await _whole(services, request, result, how.response_format == "url")


async def _whole(services: Services, request: Request, result: GenerationResult, as_urls: bool) -> Response:
    images = []
    for index, data in enumerate(result.encoded):
        seed, format_ = result.seeds[index], result.formats[index]
        if as_urls:
            name = f"{services.results.new_token()}.{format_}"
            expires = time.time() + services.settings.results_seconds
            try:
                await services.results.keep(name, MEDIA_TYPES[format_], data, expires)
            except Exception as error:
                raise storage_failed("keep this image (b64_json needs no room)", error) from error
            url = f"{base_url(request, services)}/v1/files/{name}"
            images.append(answers.Image(url=url, seed=seed))
        else:
            images.append(answers.Image(b64_json=_text(data), seed=seed))
    content = answers.Images(
        created=int(time.time()),
        data=images,
        output_format=result.formats[0],
        size=_size(result, 0),
        model=result.model,
    )
    headers = {"x-request-id": result.request_id}
    return Response(content.model_dump_json(exclude_none=True), media_type="application/json", headers=headers)


async def _events(job: AsyncJob, kind: str, partials: Partials) -> sse.Events:
    """Yield a comment when a worker begins the request, then partial images, then the images.

    Raises the `ImagegenError` that the request ends in. Workers check a request before they begin it.
    """
    begun = False
    async with aclosing(job.progress()) as signs:
        async for sign in signs:
            if sign.state == "running" and not begun:
                begun = True
                yield KEEPALIVE_COMMENT
            if sign.preview is None or (index := partials.pick(sign.step, sign.steps)) is None:
                continue
            name = f"{kind}.partial_image"
            jpeg = sign.preview.startswith(b"\xff\xd8")
            yield sse.event(
                name,
                streaming.PartialImage(
                    type=name,
                    b64_json=_text(sign.preview),
                    created_at=int(time.time()),
                    output_format="jpeg" if jpeg else "png",
                    partial_image_index=index,
                ),
            )
    result = await job.result()
    name = f"{kind}.completed"
    for index, data in enumerate(result.encoded):
        yield sse.event(
            name,
            streaming.CompletedImage(
                type=name,
                b64_json=_text(data),
                created_at=int(time.time()),
                output_format=result.formats[index],
                size=_size(result, index),
                seed=result.seeds[index],
                image_index=index,
                model=result.model,
            ),
        )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _size(result: GenerationResult, index: int) -> str:
    width, height = result.sizes[index]
    return f"{width}x{height}"
