"""The parameters that a model accepts for one task, in addition to those that all models accept."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from imagegen_protocol import InvalidRequestError
from imagegen_protocol.request import BODY_PARAMETERS


@dataclass(frozen=True, slots=True)
class TaskCapabilities:
    """The parameters of a pipeline's call. `strength`: the default; None: not accepted.

    `extra`: the Python type of each extra parameter. `owned`: parameters that are never accepted as extra, and
    what to use instead. `defaults`: the default of each declared parameter that the call accepts;
    None: the pipeline chooses.
    """

    strength: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    owned: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_call(
        cls, defaults: Mapping[str, Any], extra: Mapping[str, Any], owned: Mapping[str, str]
    ) -> "TaskCapabilities":
        """Return the capabilities of a call; `defaults` has the default of each of its parameters."""
        declared = {
            name: value if isinstance(value, bool | int | float | str) else None
            for name, value in defaults.items()
            if name in BODY_PARAMETERS
        }
        strength = declared.get("strength")
        return cls(float(strength) if isinstance(strength, int | float) else None, extra, owned, declared)

    def convert_extra(self, model: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return extra parameters converted to their types. Raises `InvalidRequestError`."""
        return {name: self._convert(model, name, value) for name, value in values.items()}

    def _convert(self, model: str, name: str, value: Any) -> Any:
        if name in self.owned:
            raise InvalidRequestError(f"extra: {name!r} is not an extra parameter: {self.owned[name]}")
        if name not in self.extra:
            accepted = ", ".join(sorted(self.extra)) or "none"
            raise InvalidRequestError(f"extra: the model {model} does not accept {name!r}; accepted: {accepted}")
        try:
            return msgspec.convert(value, self.extra[name])
        except msgspec.ValidationError as error:
            problem = str(error)
            raise InvalidRequestError(
                f"extra: {name}: {problem[0].lower()}{problem[1:]}, got {value!r:.80}"
            ) from error
