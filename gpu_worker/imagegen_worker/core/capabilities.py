"""What a model accepts for one task, beside the parameters that all models accept."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from imagegen_protocol import InvalidRequestError
from imagegen_protocol.request import BODY_PARAMETERS


@dataclass(frozen=True, slots=True)
class TaskCapabilities:
    """What the pipeline's call accepts. `strength`: the default; None: not accepted.

    `extra`: the type of each further parameter, as Python writes it. `owned`: parameters that are never accepted
    as extra, and what to use instead. `defaults`: the default of each declared parameter that the call accepts;
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
        """Return what a call accepts; `defaults` are those of all its parameters, by name."""
        declared = {
            name: value if isinstance(value, bool | int | float | str) else None
            for name, value in defaults.items()
            if name in BODY_PARAMETERS
        }
        strength = declared.get("strength")
        return cls(float(strength) if isinstance(strength, int | float) else None, extra, owned, declared)

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
