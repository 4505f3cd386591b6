"""Image requests that the client waits for: answered as JSON or as a stream of events."""

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
from imagegen_gateway.admission import get_admission, report_rate
from imagegen_gateway.core.limits import find_violation, with_defaults, within_limits
from imagegen_gateway.core.models import resolve_model, response_format
from imagegen_gateway.core.partial_images import PartialImageSelector
from imagegen_gateway.errors import ApiError, storage_failed
from imagegen_gateway.image_store import MEDIA_TYPES
from imagegen_gateway.input_images import InputImages
from imagegen_gateway.keys import ApiKey
from imagegen_gateway.paced_response import PacedResponse
from imagegen_gateway.response_headers import set_request_id
from imagegen_gateway.results import check_result
from imagegen_gateway.schemas import responses, streaming
from imagegen_gateway.schemas.requests import EditBody, GenerateBody, GenerationParameters, options
from imagegen_gateway.services import Services
from imagegen_protocol.declaration import join_images


async def allowed_options(
    services: Services, api_key: ApiKey, body: GenerationParameters, inputs: InputImages
) -> dict[str, Any]:
    """Return the options of a body, with the name of a served model and the defaults and limits of the key.

    All images of the request count for the rate of the key. Raises `ApiError` 400, and 403 beyond the limits.
    """
    given = options(body)
    settings, statistics = services.settings, await services.clients.known_stats()
    model = resolve_model(
        given.pop("model", None),
        settings.model_aliases,
        None if statistics is None else statistics.models,
        unknown_to_default=settings.unknown_models == "default",
    )
    if model is not None:
        given["model"] = model
    if (violation := find_violation(api_key.limits, given)) is not None:
        services.metrics.refusals.labels(reason="limit").inc()
        raise ApiError(403, "not_allowed", violation.message, param=violation.field)
    services.charge(api_key, given.get("num_images", 1))
    given = with_defaults(api_key.limits, given)
    capabilities = None
    if statistics is not None:
        capabilities = statistics.model_traits.get(given.get("model") or statistics.default_model or "")
    return within_limits(api_key.limits, given, capabilities, inputs.output_size)


async def generate_response(
    services: Services,
    api_key: ApiKey,
    request: Request,
    body: GenerateBody | EditBody,
    inputs: InputImages,
    kind: str,
) -> Response:
    """Generate images and return the response. `kind` prefixes event names: `image_generation`, `image_edit`."""
    format_ = response_format(body.response_format, body.model, services.settings.default_response_format)
    if body.partial_images and not body.stream:
        raise ApiError(400, "invalid_value", "partial_images: requires stream", param="partial_images")
    if body.stream and body.response_format == "url":
        message = "response_format: expected b64_json with stream, got 'url'"
        raise ApiError(400, "invalid_value", message, param="response_format")
    with ExitStack() as stack:
        await services.clients.require_workers()
        given = await allowed_options(services, api_key, body, inputs)
        report_rate(request.scope, services, api_key)
        client = stack.enter_context(services.clients.client(api_key.id))
        count = body.partial_images or 0
        # A stream starts when a worker begins the request, which only progress reports.
        sent = {**given, **join_images(inputs.frames)}
        job = client.submit(body.prompt, progress=bool(body.stream), preview=bool(count), **sent)
        stack.callback(job.cancel)
        set_request_id(request.scope, job.request_id)
        if body.stream:
            events = _events(job, given, kind, PartialImageSelector(count))
            return await sse.open_stream(request, events, stack.pop_all().close)
        try:
            result = check_result(await sse.unless_disconnected(request, job.result()), given)
        except sse.ClientDisconnectedError:
            return Response(status_code=499)
        return await _json_response(services, api_key, request, result, format_ == "url")


async def _json_response(
    services: Services, api_key: ApiKey, request: Request, result: GenerationResult, as_urls: bool
) -> Response:
    urls = await _publish(services, request, result) if as_urls else None
    content = await services.threads.run(api_key.id, _json_body, result, urls)
    get_admission(request).memory.hold(len(content))
    return PacedResponse(content, {"content-type": "application/json"})


async def _publish(services: Services, request: Request, result: GenerationResult) -> list[str]:
    """Store the images of a result; return their URLs. Raises `ApiError` 503."""
    urls = []
    for data, format_ in zip(result.encoded, result.formats, strict=True):
        name = f"{services.images.new_token()}.{format_}"
        expires = time.time() + services.settings.results_kept
        try:
            await services.images.publish(name, MEDIA_TYPES[format_], data, expires)
        except Exception as error:
            raise storage_failed("store this image (b64_json needs no storage)", error) from error
        urls.append(f"{base_url(request, services)}/v1/files/{name}")
    return urls


def _json_body(result: GenerationResult, urls: list[str] | None) -> bytes:
    """Return the body of a response: the images by URL, or in base64 without `urls`."""
    if urls is None:
        texts = [_base64(data) for data in result.encoded]
        images = [
            responses.Image(b64_json=text, seed=seed) for text, seed in zip(texts, result.seeds, strict=True)
        ]
    else:
        images = [responses.Image(url=url, seed=seed) for url, seed in zip(urls, result.seeds, strict=True)]
    content = responses.Images(
        created=int(time.time()),
        data=images,
        output_format=result.formats[0],
        size=_size(result, 0),
        model=result.model,
        warnings=result.warnings or None,
    )
    return content.model_dump_json(exclude_none=True).encode()


async def _events(
    job: AsyncJob, given: Mapping[str, Any], kind: str, selector: PartialImageSelector
) -> sse.Events:
    """Yield a comment when a worker begins the request, then partial images, then the images.

    Raises the `ImagegenError` that the request ends in. Workers check a request before they begin it.
    """
    running = False
    async with aclosing(job.progress()) as reports:
        async for report in reports:
            if report.state == "running" and not running:
                running = True
                yield KEEPALIVE_COMMENT
            if report.preview is None or (index := selector.select(report.step, report.steps)) is None:
                continue
            name = f"{kind}.partial_image"
            jpeg = report.preview.startswith(b"\xff\xd8")
            yield sse.event(
                name,
                streaming.PartialImage(
                    type=name,
                    b64_json=_base64(report.preview),
                    created_at=int(time.time()),
                    output_format="jpeg" if jpeg else "png",
                    partial_image_index=index,
                ),
            )
    result = check_result(await job.result(), given)
    name = f"{kind}.completed"
    for index, data in enumerate(result.encoded):
        yield sse.event(
            name,
            streaming.CompletedImage(
                type=name,
                b64_json=_base64(data),
                created_at=int(time.time()),
                output_format=result.formats[index],
                size=_size(result, index),
                seed=result.seeds[index],
                image_index=index,
                model=result.model,
                warnings=result.warnings or None,
            ),
        )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _size(result: GenerationResult, index: int) -> str:
    width, height = result.sizes[index]
    return f"{width}x{height}"
