"""The parameters of one model as JSON Schema: those its workers accept, within the limits of a key."""

from typing import Any

from imagegen_gateway.core.limits import Limits
from imagegen_protocol.capabilities import AcceptedParameter, ModelCapabilities, accepted_parameter
from imagegen_protocol.declaration import Parameter
from imagegen_protocol.parameters import PARAMETERS

Schemas = dict[str, dict[str, Any]]


def parameters(model: ModelCapabilities, limits: Limits) -> Schemas:
    """Return the schemas of the parameters that a model accepts, by name."""
    maximums = {
        "width": limits.max_width,
        "height": limits.max_height,
        "num_inference_steps": limits.max_steps,
    }
    found: Schemas = {}
    for name, parameter in PARAMETERS.items():
        if not parameter.info.listed or (by_model := accepted_parameter(model, parameter)) is None:
            continue
        # Width and height have names of their own here, although requests state them as one `size`.
        found[parameter.http_name if parameter.info.in_http else name] = _schema(
            parameter, by_model, maximums.get(name)
        )
    return found


def _schema(parameter: Parameter, by_model: AcceptedParameter, maximum: int | None) -> dict[str, Any]:
    """Return the narrowest bounds that the declaration, the model and the key set."""
    schema = parameter.json_schema()
    if by_model.default is not None:
        schema = {"default": by_model.default, **schema}
    if by_model.minimum is not None:
        schema["minimum"] = max(by_model.minimum, schema.get("minimum", by_model.minimum))
    # The maximum of a list is the number of its items.
    most = "max_items" if parameter.kind == "images" else "maximum"
    bounds = [bound for bound in (schema.get(most), by_model.maximum, maximum) if bound is not None]
    if bounds:
        schema[most] = min(bounds)
    if by_model.choices is not None:
        for name in ("min_length", "max_length", "pattern"):
            schema.pop(name, None)
        schema["enum"] = by_model.choices
    if (multiple := by_model.multiple_of) is not None:
        schema["minimum"] = -(-schema["minimum"] // multiple) * multiple
        schema["maximum"] = schema["maximum"] // multiple * multiple
        schema["multiple_of"] = multiple
    if "default" in schema and "maximum" in schema:
        schema["default"] = min(schema["default"], schema["maximum"])
    return schema
