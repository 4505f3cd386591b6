"""Several models whose requests run side by side, each on a pipeline of its own."""

from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from imagegen_worker.backends import OnStep, Row
from imagegen_worker.core.model import ResolvedRequest
from imagegen_worker.engines.continuous.engine import StepwiseBackend
from imagegen_worker.models.manager import ModelManager

if TYPE_CHECKING:
    from PIL.Image import Image


class ManagedStepwise:
    """Implements `StepwiseBackend` with several of them. `first` is loaded; all are on the same device."""

    def __init__(self, manager: ModelManager[Any], first: StepwiseBackend) -> None:
        self._manager = manager
        self.timer = first.timer
        self._session = first.session()

    def session(self) -> AbstractContextManager[Any]:
        """See `StepwiseBackend.session`: it is the thread's, not that of one model."""
        return self._session

    def call_key(self, request: ResolvedRequest) -> Hashable | None:
        """See `StepwiseBackend.call_key`."""
        model: StepwiseBackend = self._manager[request.model]
        return model.call_key(request)

    def drops_rows(self, request: ResolvedRequest) -> bool:
        """See `StepwiseBackend.drops_rows`."""
        model: StepwiseBackend = self._manager[request.model]
        return model.drops_rows(request)

    def make(self, rows: Sequence[Row], on_step: OnStep) -> "list[Image]":
        """See `StepwiseBackend.make`."""
        model: StepwiseBackend = self._manager[rows[0].request.model]
        return model.make(rows, on_step)
