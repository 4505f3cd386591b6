"""`/v1/models`: OpenAI's list of models, with the parameters that each model accepts."""

from fastapi import APIRouter, Response

from imagegen_client import Statistics
from imagegen_gateway.access import ApiKeyDep, ServicesDep
from imagegen_gateway.admission import HeldResponse
from imagegen_gateway.core.limits import Limits
from imagegen_gateway.core.models import resolve_model
from imagegen_gateway.core.parameters import parameters
from imagegen_gateway.errors import error_responses, not_found
from imagegen_gateway.schemas.responses import Model, Models, Parameter
from imagegen_gateway.services import Services

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", response_model=Models, responses=error_responses(401, 403, 429, 503), summary="List models")
async def list_models(services: ServicesDep, api_key: ApiKeyDep) -> Response:
    """List the models that workers serve and the key may use, with the ranges and defaults of each."""
    statistics, limits = await services.clients.stats(), api_key.limits
    served = [name for name in statistics.models if _may_use(limits, name)]
    models = [_model(services, statistics, limits, name) for name in served]
    for alias, name in services.settings.model_aliases.items():
        if name in served:
            models.append(_alias(alias, _model(services, statistics, limits, name)))
    return HeldResponse(services, api_key, Models(data=models).model_dump_json(exclude_none=True).encode())


@router.get(
    "/{model_id:path}",
    response_model_exclude_none=True,
    responses=error_responses(401, 403, 404, 503),
    summary="Get a model",
)
async def get_model(model_id: str, services: ServicesDep, api_key: ApiKeyDep) -> Model:
    """Get a model by its name, which may contain slashes, or the model that requests with another name use."""
    statistics, limits, settings = await services.clients.stats(), api_key.limits, services.settings
    name = resolve_model(
        model_id,
        settings.model_aliases,
        statistics.models,
        unknown_to_default=settings.unknown_models == "default",
    )
    name = _default(statistics, limits) if name is None else name
    if name not in statistics.models or not _may_use(limits, name):
        raise not_found("model", model_id)
    model = _model(services, statistics, limits, name)
    return model if name == model_id else _alias(model_id, model)


def _may_use(limits: Limits, name: str) -> bool:
    return limits.models is None or name in limits.models


def _default(statistics: Statistics, limits: Limits) -> str | None:
    return limits.models[0] if limits.models else statistics.default_model


def _model(services: Services, statistics: Statistics, limits: Limits, name: str) -> Model:
    accepted = None
    if name in statistics.model_traits:
        schemas = parameters(statistics.model_traits[name], limits)
        accepted = {key: Parameter(**schema) for key, schema in schemas.items()}
    started = int(services.started)
    return Model(id=name, created=started, default=name == _default(statistics, limits), parameters=accepted)


def _alias(name: str, model: Model) -> Model:
    return model.model_copy(update={"id": name, "default": False, "alias_of": model.id})
