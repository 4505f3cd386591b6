"""`/v1/models`: what the fleet serves, as OpenAI has it, and what each model takes."""

from fastapi import APIRouter

from imagegen_gateway.access import ApiKeyDep, ServicesDep
from imagegen_gateway.core.parameters import parameters
from imagegen_gateway.errors import error_responses, not_found
from imagegen_gateway.schemas.responses import Model, Models, Parameter

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", response_model_exclude_none=True, responses=error_responses(401, 403, 503), summary="List models")
async def list_models(services: ServicesDep, api_key: ApiKeyDep) -> Models:
    """List the models that workers serve and the key may use, with the ranges and defaults of each."""
    statistics = await services.clients.stats()
    capabilities = statistics.model_traits
    limits = api_key.limits
    default = limits.models[0] if limits.models else statistics.default_model
    models = []
    for name in statistics.models:
        if limits.models is not None and name not in limits.models:
            continue
        told = None
        if name in capabilities:
            told = {key: Parameter(**value) for key, value in parameters(capabilities[name], limits).items()}
        started = int(services.started)
        models.append(Model(id=name, created=started, default=name == default, parameters=told))
    return Models(data=models)


@router.get(
    "/{model_id:path}",
    response_model_exclude_none=True,
    responses=error_responses(401, 403, 404, 503),
    summary="Look at a model",
)
async def get_model(model_id: str, services: ServicesDep, api_key: ApiKeyDep) -> Model:
    """Look at one of them; its name may have slashes."""
    for model in (await list_models(services, api_key)).data:
        if model.id == model_id:
            return model
    raise not_found("model", model_id)
