"""`/v1/models`: what the fleet serves, as OpenAI has it."""

from fastapi import APIRouter

from imagegen_gateway.access import TheCaller, TheServices
from imagegen_gateway.errors import not_found, responses
from imagegen_gateway.schemas.answers import Model, Models

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", responses=responses(401, 403, 503), summary="List models")
async def list_models(services: TheServices, caller: TheCaller) -> Models:
    """List the models that workers serve and the key may use."""
    served: list[str] = (await services.fleet.stats())["models"]
    allowed = caller.limits.models
    names = [name for name in served if allowed is None or name in allowed]
    return Models(data=[Model(id=name, created=int(services.started)) for name in names])


@router.get("/{model_id:path}", responses=responses(401, 403, 404, 503), summary="Look at a model")
async def get_model(model_id: str, services: TheServices, caller: TheCaller) -> Model:
    """Look at one of them; its name may have slashes."""
    for model in (await list_models(services, caller)).data:
        if model.id == model_id:
            return model
    raise not_found("model", model_id)
