"""The models that a worker serves."""

from collections.abc import Sequence

from imagegen_protocol import ModelNotFoundError
from imagegen_protocol.capabilities import encode_capabilities
from imagegen_worker.core.model import Model


class ServedModels:
    """Names of the served models, and the capabilities of those that were loaded at least once."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        """All served models, the default first."""
        self.loaded: tuple[str, ...] = ()
        """Models that are loaded or being loaded."""
        self._known: dict[str, Model] = {}

    def initialise(self, loaded: Sequence[Model], names: Sequence[str]) -> None:
        """Set the loaded models and the names of all; without `names` the loaded models are all."""
        self._known = {model.name: model for model in loaded}
        self.loaded = tuple(self._known)
        self.names = tuple(names) or self.loaded

    def update(self, model: Model) -> bool:
        """Store a model that was loaded; return whether its capabilities are new or changed."""
        changed = self._known.get(model.name) != model
        self._known[model.name] = model
        return changed

    def encode_capabilities(self, *names: str) -> list[bytes]:
        """Return the capabilities frames of READY for these models, or for all.

        Models that were never loaded are omitted.
        """
        return encode_capabilities(
            {name: self._known[name].capabilities() for name in names or self.names if name in self._known}
        )

    def resolve_name(self, requested: str | None) -> str:
        """Return the requested name, or the default for None. Raises `ModelNotFoundError`."""
        name = self.names[0] if requested is None else requested
        if name not in self.names:
            raise ModelNotFoundError(f"the worker does not serve {name}; it serves {', '.join(self.names)}")
        return name

    def get(self, name: str) -> Model | None:
        """Return a model; None before it was loaded for the first time."""
        return self._known.get(name)
