"""All request parameters by name: those of the header (`Submit`), and those of the body (`GenerationRequest`).

The type and range of each, and what else is to know of it, are declared in the struct, or here for the header.
"""

from imagegen_protocol.declaration import ParameterInfo, Parameters, read_parameters
from imagegen_protocol.messages import Submit
from imagegen_protocol.request import BODY_PARAMETERS

_HEADER_INFOS = {
    "model": ParameterInfo(
        label="Model",
        description="Name of a model that the fleet serves (`imagegen models` lists them).",
        unset="the broker's",
        metavar="NAME",
        per_model=False,
        listed=False,
        in_result=False,
    ),
    "priority": ParameterInfo(
        label="Priority",
        description="Priority in the queue; higher values are dispatched first.",
        http_note="At most the priority of the key.",
        unset=None,
        per_model=False,
        listed=False,
        in_result=False,
    ),
    "timeout_seconds": ParameterInfo(
        label="Timeout",
        description="Time after which the request fails with `deadline_exceeded`.",
        unit="seconds",
        unset="never",
        option="--timeout",
        metavar="SECONDS",
        per_model=False,
        listed=False,
        in_result=False,
    ),
}

HEADER_PARAMETERS: Parameters = read_parameters(Submit, _HEADER_INFOS)
"""Parameters that the broker reads."""
PARAMETERS: Parameters = {**BODY_PARAMETERS, **HEADER_PARAMETERS}
IMAGE_PARAMETERS: Parameters = {name: each for name, each in BODY_PARAMETERS.items() if each.has_images}


def http_field(name: str) -> str:
    """Return the field of the HTTP API that stands for a field of the wire or of the client."""
    if name == "inputs":
        return "image"
    return PARAMETERS[name].http_name if name in PARAMETERS else name
