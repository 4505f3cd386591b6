"""What one model accepts for a parameter, and how the statements of several workers are merged."""

import enum
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from imagegen_protocol.declaration import Parameter
from imagegen_protocol.limits import MAX_CHOICES
from imagegen_protocol.messages import Name

if TYPE_CHECKING:
    from imagegen_protocol.traits import ModelTraits

Choices = Annotated[list[Name], Meta(max_length=MAX_CHOICES)]
Multiple = Annotated[int, Meta(ge=1)]


class Merge(enum.Enum):
    """How a field is merged where the workers of a model differ: the first's defaults, the widest bounds."""

    FIRST = "the first worker's value"
    FIRST_SET = "the first value that is not None"
    LOWEST = "the lowest value; None, which is no bound, if a worker has it"
    HIGHEST = "the highest value; None, which is no bound, if a worker has it"
    ANY = "true if it is true for a worker"
    UNION = "all items of the lists; None if no worker has a list"
    EACH = "a map with the keys of all workers; structs are merged by their fields, other values by FIRST_SET"


class AcceptedParameter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a model accepts for one parameter, within the range of its declaration; None: no narrower bound."""

    default: Annotated[str | int | float | bool | None, Merge.FIRST_SET] = None
    minimum: Annotated[int | float | None, Merge.LOWEST] = None
    maximum: Annotated[int | float | None, Merge.HIGHEST] = None
    multiple_of: Annotated[Multiple | None, Merge.LOWEST] = None
    choices: Annotated[Choices | None, Merge.UNION] = None


def accepted(model: "ModelTraits", parameter: Parameter) -> AcceptedParameter | None:
    """Return what a model accepts for a parameter; None if it does not accept it.

    Parameters that are older than `ModelTraits.parameters` have fields of their own.
    """
    if not parameter.info.per_model:
        return AcceptedParameter(default=parameter.default)
    if parameter.kind in ("image", "images"):
        return AcceptedParameter() if parameter.info.tasks[0] in model.tasks else None
    match parameter.name:
        case "width" | "height" as side:
            default = model.width if side == "width" else model.height
            return AcceptedParameter(default=default, maximum=model.max_side, multiple_of=model.size_multiple)
        case "num_inference_steps":
            return AcceptedParameter(default=model.num_inference_steps)
        case "guidance_scale":
            return _with_default(model.guidance_scale)
        case "strength":
            defaults = (model.tasks.get(task) for task in parameter.info.tasks)
            return _with_default(next((each for each in defaults if each is not None), None))
        case "negative_prompt":
            return AcceptedParameter() if model.negative_prompt else None
        case "scheduler":
            choices = model.schedulers
            return AcceptedParameter(default=choices[0], choices=choices) if choices else None
        case "loras":
            return None if model.loras is None else AcceptedParameter(choices=model.loras)
    return model.parameters.get(parameter.name)


def _with_default(default: float | None) -> AcceptedParameter | None:
    return None if default is None else AcceptedParameter(default=default)
