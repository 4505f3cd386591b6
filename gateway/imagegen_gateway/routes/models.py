"""`/v1/models`: OpenAI's list of models, with the parameters that each model accepts."""

from fastapi import APIRouter, Response

from imagegen_gateway.access import ApiKeyDep, ServicesDep
from imagegen_gateway.admission import HeldResponse
from imagegen_gateway.core.parameters import parameters
from imagegen_gateway.errors import error_responses, not_found
from imagegen_gateway.keys import ApiKey
from imagegen_gateway.schemas.responses import Model, Models, Parameter
from imagegen_gateway.services import Services

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", response_model=Models, responses=error_responses(401, 403, 429, 503), summary="List models")
async def list_models(services: ServicesDep, api_key: ApiKeyDep) -> Response:
    """List the models that workers serve and the key may use, with the ranges and defaults of each."""
    models = await _models(services, api_key)
    return HeldResponse(services, api_key, models.model_dump_json(exclude_none=True).encode())


async def _models(services: Services, api_key: ApiKey) -> Models:
    statistics = await services.clients.stats()
    capabilities = statistics.model_traits
    limits = api_key.limits
    default = limits.models[0] if limits.models else statistics.default_model
    models = []
    for name in statistics.models:
        if limits.models is not None and name not in limits.models:
            continue
        accepted = None
        if name in capabilities:
            schemas = parameters(capabilities[name], limits)
            accepted = {key: Parameter(**schema) for key, schema in schemas.items()}
        started = int(services.started)
        models.append(Model(id=name, created=started, default=name == default, parameters=accepted))
    return Models(data=models)


@router.get(
    "/{model_id:path}",
    response_model_exclude_none=True,
    responses=error_responses(401, 403, 404, 503),
    summary="Get a model",
)
async def get_model(model_id: str, services: ServicesDep, api_key: ApiKeyDep) -> Model:
    """Get a model by its name, which may contain slashes."""
    for model in (await _models(services, api_key)).data:
        if model.id == model_id:
            return model
    raise not_found("model", model_id)
