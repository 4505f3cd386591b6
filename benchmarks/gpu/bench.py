"""What a stage works with: its device, its time, and the file that holds its results."""

import contextlib
import gc
import importlib
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from imagegen_common.files import replacing


class Bench:
    """One stage's results, written to `folder/NAME.json` at once. `small`: tiny models on the pretended card.

    `seconds`: time that the stage has, loading included.
    """

    def __init__(self, name: str, folder: Path, seconds: float, *, small: bool) -> None:
        self.small = small
        self.device = torch.device("cuda", 0)
        self.folder = folder
        self._file = folder / f"{name}.json"
        self._deadline = time.monotonic() + seconds
        self._result: dict[str, Any] = {"checks": [], "tables": {}, "error": None}

    def remaining(self) -> float:
        """Return the seconds left to the stage."""
        return self._deadline - time.monotonic()

    def row(self, table: str, **cells: Any) -> None:
        """Add a row to a table; the names of the cells are the columns."""
        self._result["tables"].setdefault(table, []).append(cells)
        self._write()

    def check(self, what: str, passed: bool, detail: str = "") -> None:
        """Record whether a requirement is met."""
        self._result["checks"].append({"what": what, "passed": bool(passed), "detail": detail})
        self._write()

    def fail(self, error: BaseException) -> None:
        """Record the exception that ended the stage."""
        self._result["error"] = f"{type(error).__name__}: {error}"
        self._write()

    def _write(self) -> None:
        with replacing(self._file) as path:
            path.write_text(json.dumps(self._result))


@contextlib.contextmanager
def device_ready(small: bool) -> Iterator[None]:
    """Set up the device for a stage, on the thread of the `with` block.

    Convolutions compute float32 in full precision: with TF32, images of the card and of the CPU differ by more
    than rounding. The models of real size use bfloat16, which this does not change. Raises `RuntimeError` if torch
    sees no CUDA device.
    """
    torch.backends.cudnn.allow_tf32 = False
    if not small:
        if not torch.cuda.is_available():
            raise RuntimeError("torch sees no CUDA device; --small uses the pretended card")
        torch.cuda.set_device(0)
        yield
        return
    torch.set_num_threads(1)
    with importlib.import_module("tests.rehearsal.card").pretended_card():
        yield


def release_memory() -> None:
    """Return the unused memory of the device to the driver."""
    gc.collect()
    torch.cuda.empty_cache()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the libraries' messages about random weights and old numpy calls."""
    with warnings.catch_warnings():
        # diffusers' schedulers make numpy arrays of tensors in a way that numpy 2 deprecates.
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="Already found a `peft_config`", category=UserWarning)
        diffusers.logging.set_verbosity_error()
        diffusers.logging.disable_progress_bar()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        yield
