"""Forwards of a text encoder that no forward of another call may interrupt, so that they run at once.

- `generate` keeps positions in the model between its forwards (LongCat-Image lets the model rewrite the prompt).
- A hook that a pipeline call adds reads outputs inside the model (JoyImage-Edit, Qwen-Image 2.1): it must see the
  forward of its own call, and no other.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from imagegen_worker.backends.diffusers.shared_modules import count_hooks


class UninterruptedForwards:
    """Recognises these forwards of one text encoder. `ended` is called after each `generate`."""

    def __init__(self, module: torch.nn.Module, ended: Callable[[], None]) -> None:
        self._module = module
        self._hooks = count_hooks(module)
        self._running = 0
        self._ended = ended
        self._generate: Callable[..., Any] | None = getattr(module, "generate", None)
        if self._generate is not None:
            wrapped = functools.wraps(self._generate)(functools.partial(self._run_generate))
            module.generate = wrapped  # type: ignore[assignment]

    def __call__(self) -> bool:
        """Return whether a forward that begins now must not be interrupted."""
        return self._running > 0 or count_hooks(self._module) != self._hooks

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Run a forward of the module. Hooks that it adds and keeps, as transformers' do, are its own."""
        before = count_hooks(self._module)
        try:
            yield
        finally:
            self._hooks += max(count_hooks(self._module) - before, 0)

    def remove(self) -> None:
        """Restore the module's own method."""
        if self._generate is not None:
            del self._module.generate
        del self._module, self._ended, self._generate

    def _run_generate(self, *args: Any, **kwargs: Any) -> Any:
        assert self._generate is not None
        self._running += 1
        try:
            return self._generate(*args, **kwargs)
        finally:
            self._running -= 1
            self._ended()
