"""Statistics, metrics and probes."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client.exposition import choose_encoder

from imagegen_client import ImagegenError
from imagegen_gateway.access import ApiKeyDep, ServicesDep
from imagegen_gateway.admission import HeldResponse
from imagegen_gateway.errors import error_responses
from imagegen_protocol.statistics import to_json

router = APIRouter(tags=["operations"])


@router.get(
    "/stats",
    response_class=Response,
    responses={
        200: {
            "content": {"application/json": {"schema": {"type": "object"}}},
            "description": "The statistics; `docs/stats.schema.json` is their schema.",
        },
        **error_responses(401, 403, 429, 503),
    },
    summary="The broker's statistics",
)
async def stats(services: ServicesDep, api_key: ApiKeyDep) -> Response:
    """Return the content of the broker's `/stats`, at most half a second old."""
    return HeldResponse(services, api_key, to_json(await services.clients.stats()))


@router.get("/metrics", response_class=PlainTextResponse, summary="The gateway's metrics")
async def metrics(request: Request, services: ServicesDep) -> Response:
    """Return the gateway's metrics in a Prometheus format."""
    encoder, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encoder(services.metrics.registry), headers={"Content-Type": content_type})


@router.get("/healthz", response_class=PlainTextResponse, summary="Liveness probe")
async def healthz(services: ServicesDep) -> str:
    """Return `ok` if the gateway serves and its database answers."""
    await services.database.fetch_one("SELECT 1")
    return "ok\n"


@router.get(
    "/readyz",
    response_class=PlainTextResponse,
    responses={503: {"description": "No worker.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
    summary="Readiness probe",
)
async def readyz(services: ServicesDep) -> Response:
    """Return `ok` if a broker answers and has a worker."""
    try:
        statistics = await services.clients.stats()
    except ImagegenError as error:
        return PlainTextResponse(f"{error.message}\n", 503)
    if not statistics.num_gpus:
        return PlainTextResponse("no worker is registered\n", 503)
    return PlainTextResponse("ok\n")
