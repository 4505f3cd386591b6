"""What one model accepts for a parameter, and how the statements of several workers are merged."""

import enum
from typing import Annotated

import msgspec
from msgspec import Meta

from imagegen_protocol.limits import MAX_CHOICES, MAX_SIDE_PIXELS
from imagegen_protocol.messages import Finite, Integer, Name, Plain

Choices = Annotated[list[Name], Meta(max_length=MAX_CHOICES)]
Multiple = Annotated[int, Meta(ge=1, le=MAX_SIDE_PIXELS)]


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

    default: Annotated[Plain, Merge.FIRST_SET] = None
    minimum: Annotated[Integer | Finite | None, Merge.LOWEST] = None
    maximum: Annotated[Integer | Finite | None, Merge.HIGHEST] = None
    multiple_of: Annotated[Multiple | None, Merge.LOWEST] = None
    choices: Annotated[Choices | None, Merge.UNION] = None
