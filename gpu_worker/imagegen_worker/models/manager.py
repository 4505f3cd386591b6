"""Loading of models on request, within a memory budget. Runs on the device thread."""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from imagegen_common.logs import log
from imagegen_worker.backends import DeviceLostError, DeviceMemoryError, StartError
from imagegen_worker.backends.tracebacks import release_frames
from imagegen_worker.core.events import ModelLoaded, ModelLoadFailed, ModelLoading
from imagegen_worker.core.model import Model
from imagegen_worker.core.model_cache import ModelCache, ModelSwap
from imagegen_worker.mailbox import Mailbox

_log = logging.getLogger(__name__)


class Loadable(Protocol):
    """A model that can be loaded once and closed once."""

    def size_bytes(self) -> int:
        """Return the bytes that the loaded model takes. Raises `StartError` if it cannot be loaded."""

    def load(self) -> Model:
        """Load the model. Raises `StartError`, `DeviceMemoryError` and `DeviceLostError`."""

    def close(self) -> None:
        """Free the memory of the device."""


B = TypeVar("B", bound=Loadable)


class ModelProvider(Protocol):
    """The models of an engine's jobs, loaded on request."""

    def request(self, name: str) -> None:
        """Request that a model is loaded."""

    def update(self, mailbox: Mailbox, running: Collection[str], waiting: Collection[str]) -> Sequence[str]:
        """Load the models that can be loaded now; return those that failed, after posting `ModelLoadFailed`.

        `running`: models of running jobs. `waiting`: models of queued jobs.
        """

    def is_ready(self, name: str) -> bool:
        """Return whether jobs may be started with this model."""

    def next_deadline(self) -> float | None:
        """Return when `update` is due if nothing else happens; None: never."""


class SingleModel:
    """Implements `ModelProvider` for an engine with one model, which is loaded."""

    def request(self, name: str) -> None:
        """Do nothing."""

    def update(self, mailbox: Mailbox, running: Collection[str], waiting: Collection[str]) -> Sequence[str]:
        """Return no failed models."""
        return ()

    def is_ready(self, name: str) -> bool:
        """Return True."""
        return True

    def next_deadline(self) -> float | None:
        """Return None."""
        return None


class ModelManager(Generic[B]):
    """Implements `ModelProvider`. `factories` return the models by name, not yet loaded."""

    def __init__(
        self,
        factories: Mapping[str, Callable[[], B]],
        cache: ModelCache,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._factories = factories
        self._cache = cache
        self._clock = clock
        self._loaded: dict[str, B] = {}
        self._sizes: dict[str, int] = {}
        self._new: list[str] = []
        """Requested models whose size is not determined yet."""
        self._explicit: set[str] = set()
        """Models that were requested by `request`, not only by queued jobs."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all models, loaded or not."""
        return tuple(self._factories)

    def __getitem__(self, name: str) -> B:
        """Return a loaded model, and mark it as used."""
        self._cache.touch(name)
        return self._loaded[name]

    def add(self, name: str, model: B) -> None:
        """Add a model that is loaded already. Raises `StartError`."""
        self._add(name, model, self._measure(name, model))

    def preload(self) -> list[Model]:
        """Load the models that fit, in order; return them. Raises the exceptions of `Loadable.load`."""
        loaded = []
        for name, factory in self._factories.items():
            if name in self._loaded:
                continue
            model = factory()
            if self._cache.fits(size := self._measure(name, model)):
                loaded.append(model.load())
                self._add(name, model, size)
        return loaded

    def request(self, name: str) -> None:
        """See `ModelProvider.request`."""
        if name not in self._loaded:
            self._explicit.add(name)
            self._enqueue(name)

    def _enqueue(self, name: str) -> None:
        if name not in self._loaded and name not in self._new and name not in self._cache.pending:
            self._new.append(name)

    def is_ready(self, name: str) -> bool:
        """See `ModelProvider.is_ready`."""
        return name in self._loaded and name not in self._cache.draining(self._clock())

    def next_deadline(self) -> float | None:
        """See `ModelProvider.next_deadline`."""
        return self._cache.next_deadline()

    def update(self, mailbox: Mailbox, running: Collection[str], waiting: Collection[str]) -> Sequence[str]:
        """See `ModelProvider.update`. Raises `DeviceLostError`."""
        for name in self._cache.pending:
            if name not in waiting and name not in self._explicit:
                self._cache.withdraw(name)
        for name in waiting:
            self._enqueue(name)
        failed = self._measure_new(mailbox)
        while (swap := self._cache.next(running, waiting, self._clock())) is not None:
            failed += self._swap(mailbox, swap, running)
        return failed

    def close(self) -> None:
        """Close all models."""
        for name in list(self._loaded):
            self._close(name)

    def _measure_new(self, mailbox: Mailbox) -> list[str]:
        """Measure the newly requested models and request them from the cache; return those that failed."""
        failed = []
        new, self._new = self._new, []
        for name in new:
            try:
                if name not in self._sizes:
                    mailbox.post(ModelLoading(name, self._loaded_names()))  # it may have to be downloaded
                    self._measure(name, self._factories[name]())
            except Exception as error:  # noqa: BLE001 - every error fails this model only
                failed.append(self._fail(mailbox, name, error))
            else:
                self._cache.request(name, self._sizes[name], self._clock())
        return failed

    def _swap(self, mailbox: Mailbox, swap: ModelSwap, running: Collection[str]) -> list[str]:
        for name in swap.evict:
            self._close(name)
        mailbox.post(ModelLoading(swap.name, self._loaded_names(swap.name)))
        started = self._clock()
        failure: Exception | None = None
        try:
            model = self._load(swap.name, running)
        except DeviceLostError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            failure = error
            release_frames(error)  # they refer to the loaded parts
        if failure is not None:
            return [self._fail(mailbox, swap.name, failure)]
        self._explicit.discard(swap.name)
        seconds = self._clock() - started
        size = self._sizes[swap.name]
        self._cache.add(swap.name, size, self._clock(), evicted=bool(swap.evict))
        log(
            _log,
            logging.INFO,
            "model loaded",
            model=swap.name,
            bytes=size,
            seconds=seconds,
            evicted=",".join(swap.evict),
        )
        if not self._cache.fits(0):
            log(_log, logging.WARNING, "model exceeds --model-memory", model=swap.name, bytes=size)
        mailbox.post(ModelLoaded(model, self._loaded_names(), seconds))
        return []

    def _load(self, name: str, running: Iterable[str]) -> Model:
        try:
            return self._load_now(name)
        except DeviceMemoryError as error:
            idle = [other for other in self._cache.names if other not in running]
            if not idle:
                raise
            log(
                _log,
                logging.WARNING,
                "out of memory while loading, evicting idle models",
                model=name,
                error=str(error),
            )
            release_frames(error)
        for other in idle:
            self._close(other)
        return self._load_now(name)

    def _load_now(self, name: str) -> Model:
        model = self._factories[name]()
        try:
            description = model.load()
        except Exception:
            model.close()
            raise
        self._loaded[name] = model
        return description

    def _fail(self, mailbox: Mailbox, name: str, error: Exception) -> str:
        self._cache.withdraw(name)
        self._explicit.discard(name)
        message = str(error) if isinstance(error, StartError) else f"{type(error).__name__}: {error}"
        log(_log, logging.ERROR, "model load failed", model=name, error=message)
        message = f"the model {name} cannot be loaded: {message}"
        mailbox.post(ModelLoadFailed(name, message, self._loaded_names()))
        return name

    def _measure(self, name: str, model: B) -> int:
        self._sizes[name] = size = model.size_bytes()
        return size

    def _add(self, name: str, model: B, size: int) -> None:
        self._loaded[name] = model
        self._cache.add(name, size, self._clock())

    def _close(self, name: str) -> None:
        self._cache.remove(name)
        self._loaded.pop(name).close()
        log(_log, logging.INFO, "model evicted", model=name)

    def _loaded_names(self, *loading: str) -> tuple[str, ...]:
        """Return the names of the loaded models and of those being loaded."""
        return tuple(dict.fromkeys((*self._loaded, *loading)))
