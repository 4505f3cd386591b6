"""Names of models in requests: aliases, and names of models that the fleet does not serve."""

from collections.abc import Collection, Mapping
from typing import Literal

ResponseFormat = Literal["b64_json", "url"]
_URL_BY_DEFAULT = "dall-e-"
"""Prefix of the names of OpenAI's models whose images are URLs by default; their clients read no other field."""


def resolve_model(
    name: str | None, aliases: Mapping[str, str], served: Collection[str] | None, *, unknown_to_default: bool
) -> str | None:
    """Return the model that a request uses; None for the default model.

    `served`: names of the models that the fleet serves; None if they are unknown, and so every name is kept.
    `unknown_to_default`: use the default model for other names.
    """
    if name is None:
        return None
    name = aliases.get(name, name)
    if unknown_to_default and served is not None and name not in served:
        return None
    return name


def response_format(stated: ResponseFormat | None, model: str | None, default: ResponseFormat) -> ResponseFormat:
    """Return the format of the images of a response. `model`: the name in the request."""
    if stated is not None:
        return stated
    return "url" if model is not None and model.startswith(_URL_BY_DEFAULT) else default
