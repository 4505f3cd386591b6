"""The models of a worker: loaded when they are asked for, within a budget. Lives on the device thread."""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from imagegen_common.logs import log
from imagegen_worker.backends import DeviceLostError, DeviceMemoryError, StartError
from imagegen_worker.core.events import Loaded, LoadFailed, Loading
from imagegen_worker.core.model import Model
from imagegen_worker.core.model_cache import ModelCache, Swap
from imagegen_worker.mailbox import Mailbox

_log = logging.getLogger(__name__)


class Loadable(Protocol):
    """A model that may be loaded, used, and freed. One that was freed is done with."""

    def weigh(self) -> int:
        """Return the bytes that it takes when loaded. Raises `StartError` if it can't be."""

    def load(self) -> Model:
        """Load it. Raises `StartError`, `DeviceMemoryError` and `DeviceLostError`."""

    def close(self) -> None:
        """Free the device."""


B = TypeVar("B", bound=Loadable)


class Models(Protocol):
    """What an engine asks about the models that its jobs need."""

    def want(self, name: str) -> None:
        """Have this model loaded when it may be."""

    def tend(self, mailbox: Mailbox, running: Collection[str], waiting: Collection[str]) -> Sequence[str]:
        """Load what may be loaded now; return the models that can't be, which is told already.

        `running`: the models with images under way. `waiting`: those for which more are to be begun.
        """

    def ready(self, name: str) -> bool:
        """Whether images may be begun with this model."""

    def due_at(self) -> float | None:
        """Return when `tend` may have something to do though nothing has happened; None: never."""


class AlwaysReady:
    """`Models` where there is one, and it is loaded."""

    def want(self, name: str) -> None:
        """It is there."""

    def tend(self, mailbox: Mailbox, running: Collection[str], waiting: Collection[str]) -> Sequence[str]:
        """There is nothing to load."""
        return ()

    def ready(self, name: str) -> bool:
        """It is."""
        return True

    def due_at(self) -> float | None:
        """Never."""
        return None


class ModelManager(Generic[B]):
    """Implements `Models`. `make` has, for each name, what returns the model, not yet loaded."""

    def __init__(
        self,
        make: Mapping[str, Callable[[], B]],
        cache: ModelCache,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make = make
        self._cache = cache
        self._clock = clock
        self._loaded: dict[str, B] = {}
        self._sizes: dict[str, int] = {}
        self._asked: list[str] = []
        self._told: set[str] = set()
        """Those of the wanted that were asked for by `want`, and so not only by jobs that wait."""

    @property
    def names(self) -> tuple[str, ...]:
        """All models, loaded or not."""
        return tuple(self._make)

    def __getitem__(self, name: str) -> B:
        """Return a model that is loaded, to be used."""
        self._cache.use(name)
        return self._loaded[name]

    def put(self, name: str, model: B) -> None:
        """Take in a model that was loaded elsewhere. Raises `StartError`."""
        self._keep(name, model, self._weigh(name, model))

    def preload(self) -> list[Model]:
        """Load, in order, what there is free room for; return it. Raises as `Loadable.load` does."""
        loaded = []
        for name, make in self._make.items():
            if name in self._loaded:
                continue
            model = make()
            if self._cache.fits(size := self._weigh(name, model)):
                loaded.append(model.load())
                self._keep(name, model, size)
        return loaded

    def want(self, name: str) -> None:
        """See `Models.want`."""
        if name not in self._loaded:
            self._told.add(name)
            self._ask(name)

    def _ask(self, name: str) -> None:
        if name not in self._loaded and name not in self._asked and name not in self._cache.wanted:
            self._asked.append(name)

    def ready(self, name: str) -> bool:
        """See `Models.ready`."""
        return name in self._loaded and name not in self._cache.closed(self._clock())

    def due_at(self) -> float | None:
        """See `Models.due_at`."""
        return self._cache.due_at()

    def tend(self, mailbox: Mailbox, running: Collection[str], waiting: Collection[str]) -> Sequence[str]:
        """See `Models.tend`. Raises `DeviceLostError`."""
        for name in self._cache.wanted:
            if name not in waiting and name not in self._told:
                self._cache.forget(name)
        for name in waiting:
            self._ask(name)
        failed = self._size_up(mailbox)
        while (swap := self._cache.next(running, waiting, self._clock())) is not None:
            failed += self._swap(mailbox, swap, running)
        return failed

    def close(self) -> None:
        """Free the device of all models."""
        for name in list(self._loaded):
            self._free(name)

    def _size_up(self, mailbox: Mailbox) -> list[str]:
        """Let the models that were asked for wait for their turn; return those that can't be loaded."""
        failed = []
        asked, self._asked = self._asked, []
        for name in asked:
            try:
                if name not in self._sizes:
                    mailbox.post(Loading(name, self._warm()))  # it may have to be fetched, and to wait
                    self._weigh(name, self._make[name]())
            except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this model
                failed.append(self._fail(mailbox, name, error))
            else:
                self._cache.want(name, self._sizes[name], self._clock())
        return failed

    def _swap(self, mailbox: Mailbox, swap: Swap, running: Collection[str]) -> list[str]:
        for name in swap.out:
            self._free(name)
        mailbox.post(Loading(swap.name, self._warm(swap.name)))
        begun = self._clock()
        failure: Exception | None = None
        try:
            described = self._load(swap.name, running)
        except DeviceLostError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            failure = error.with_traceback(None)  # its frames hold what was loaded
        if failure is not None:
            return [self._fail(mailbox, swap.name, failure)]
        self._told.discard(swap.name)
        seconds = self._clock() - begun
        size = self._sizes[swap.name]
        self._cache.put(swap.name, size, self._clock(), changed=bool(swap.out))
        log(
            _log,
            logging.INFO,
            "model loaded",
            model=swap.name,
            bytes=size,
            seconds=seconds,
            out=",".join(swap.out),
        )
        if not self._cache.fits(0):
            log(_log, logging.WARNING, "a model is bigger than --model-memory", model=swap.name, bytes=size)
        mailbox.post(Loaded(described, self._warm()))
        return []

    def _load(self, name: str, running: Iterable[str]) -> Model:
        try:
            return self._try(name)
        except DeviceMemoryError as error:
            idle = [other for other in self._cache.names if other not in running]
            if not idle:
                raise
            log(_log, logging.WARNING, "a model did not fit, others go", model=name, error=str(error))
        for other in idle:
            self._free(other)
        return self._try(name)

    def _try(self, name: str) -> Model:
        model = self._make[name]()
        try:
            described = model.load()
        except Exception:
            model.close()
            raise
        self._loaded[name] = model
        return described

    def _fail(self, mailbox: Mailbox, name: str, error: Exception) -> str:
        self._cache.forget(name)
        self._told.discard(name)
        said = str(error) if isinstance(error, StartError) else f"{type(error).__name__}: {error}"
        log(_log, logging.ERROR, "a model can't be loaded", model=name, error=said)
        mailbox.post(LoadFailed(name, f"the model {name} can't be loaded: {said}", self._warm()))
        return name

    def _weigh(self, name: str, model: B) -> int:
        self._sizes[name] = size = model.weigh()
        return size

    def _keep(self, name: str, model: B, size: int) -> None:
        self._loaded[name] = model
        self._cache.put(name, size, self._clock())

    def _free(self, name: str) -> None:
        self._cache.remove(name)
        self._loaded.pop(name).close()
        log(_log, logging.INFO, "model freed", model=name)

    def _warm(self, *coming: str) -> tuple[str, ...]:
        """Return the models that are loaded, with those that will be in a moment."""
        return tuple(dict.fromkeys((*self._loaded, *coming)))
