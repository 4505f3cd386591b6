"""What a worker serves: the models by name, what is known of each, and which are loaded."""

from collections.abc import Sequence

from imagegen_protocol import ModelNotFoundError
from imagegen_protocol.capabilities import encode_capabilities
from imagegen_worker.core.model import Model


class Catalogue:
    """Names, the first of which is the default, and what is known of those that were loaded at least once."""

    def __init__(self) -> None:
        self.served: tuple[str, ...] = ()
        self.warm: tuple[str, ...] = ()
        """Those that are loaded, or are being loaded."""
        self._known: dict[str, Model] = {}

    def open(self, models: Sequence[Model], served: Sequence[str]) -> None:
        """These models are loaded; `served` has the names of all, unless these are all."""
        self._known = {model.name: model for model in models}
        self.warm = tuple(self._known)
        self.served = tuple(served) or self.warm

    def learn(self, model: Model) -> bool:
        """A model was loaded; return whether that tells more than was known."""
        news = self._known.get(model.name) != model
        self._known[model.name] = model
        return news

    def capabilities(self) -> bytes:
        """Return the frame behind READY: the capabilities of the models that were loaded at least once."""
        return encode_capabilities(
            {name: self._known[name].capabilities() for name in self.served if name in self._known}
        )

    def name(self, asked: str | None) -> str:
        """Return the name of a model that was asked for. Raises `ModelNotFoundError`."""
        name = self.served[0] if asked is None else asked
        if name not in self.served:
            raise ModelNotFoundError(f"the worker does not serve {name}; it serves {', '.join(self.served)}")
        return name

    def get(self, name: str) -> Model | None:
        """Return what is known of a model; None before it was loaded for the first time."""
        return self._known.get(name)
