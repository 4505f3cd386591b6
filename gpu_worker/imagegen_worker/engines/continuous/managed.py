"""Several loaded models whose requests run at the same time, each on a pipeline of its own."""

from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from imagegen_worker.backends import GeneratedImage, OnStep, Row
from imagegen_worker.core.model import ResolvedRequest
from imagegen_worker.engines.continuous.engine import StepwiseBackend
from imagegen_worker.models.manager import ModelManager


class ManagedStepwise:
    """Implements `StepwiseBackend` with the models of a manager, all on one device. `first` is a loaded one."""

    def __init__(self, manager: ModelManager[Any], first: StepwiseBackend) -> None:
        self._manager = manager
        self.timer = first.timer
        self._session = first.session()

    def session(self) -> AbstractContextManager[Any]:
        """See `StepwiseBackend.session`: one for the thread, whatever the models."""
        return self._session

    def call_key(self, request: ResolvedRequest) -> Hashable | None:
        """See `StepwiseBackend.call_key`."""
        model: StepwiseBackend = self._manager[request.model]
        return model.call_key(request)

    def drops_rows(self, request: ResolvedRequest) -> bool:
        """See `StepwiseBackend.drops_rows`."""
        model: StepwiseBackend = self._manager[request.model]
        return model.drops_rows(request)

    def warnings(self, request: ResolvedRequest) -> tuple[str, ...]:
        """See `StepwiseBackend.warnings`."""
        model: StepwiseBackend = self._manager[request.model]
        return model.warnings(request)

    def generate(self, rows: Sequence[Row], on_step: OnStep) -> Sequence[GeneratedImage]:
        """See `StepwiseBackend.generate`."""
        model: StepwiseBackend = self._manager[rows[0].request.model]
        return model.generate(rows, on_step)
