"""Capabilities of a model for one task, in addition to the parameters of every request."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from imagegen_protocol import InvalidRequestError


@dataclass(frozen=True, slots=True)
class TaskCapabilities:
    """`strength`: the default, None where there is none. `extra`: the type of each parameter, as Python writes it.

    `owned` says for parameters that are never taken as extra what to use in their place.
    """

    strength: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    owned: Mapping[str, str] = field(default_factory=dict)

    def read_extra(self, model: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameters in the types that the model wants. Raises `InvalidRequestError`."""
        return {name: self._read(model, name, value) for name, value in given.items()}

    def _read(self, model: str, name: str, value: Any) -> Any:
        if name in self.owned:
            raise InvalidRequestError(f"extra: {name!r} can't be said so: {self.owned[name]}")
        if name not in self.extra:
            able = ", ".join(sorted(self.extra)) or "none"
            raise InvalidRequestError(f"extra: the model {model} takes no {name!r}; it takes: {able}")
        try:
            return msgspec.convert(value, self.extra[name])
        except msgspec.ValidationError as error:
            problem = str(error)
            raise InvalidRequestError(
                f"extra: {name}: {problem[0].lower()}{problem[1:]}, got {value!r:.80}"
            ) from error
