"""Findings: inputs on which a target raises an exception or does not return, one for each place in the code."""

import hashlib
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HANG_SECONDS = 20
"""Time after which an input counts as a hang; most take less than a thousandth of it."""


class HangError(Exception):
    """A target did not return in time."""


@contextmanager
def hang_guard(seconds: int = HANG_SECONDS) -> Iterator[None]:
    """Raise `HangError` in the block if it takes too long. Only the main thread can use it."""

    def on_alarm(*_: object) -> None:
        raise HangError(f"the target did not return within {seconds} s")

    previous = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def run_once(run: Callable[[bytes], None], data: bytes) -> None:
    """Run a target on an input, as all runners do: a hang is a finding; warnings, such as Pillow's, are none."""
    with hang_guard(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(data)


class Findings:
    """The distinct findings of one target, each saved as the input and the traceback."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: set[str] = set()
        self.runs = 0

    def __len__(self) -> int:
        return len(self._places)

    def run(self, run: Callable[[bytes], None], data: bytes) -> None:
        """Run a target on an input; save what it raises, unless the same place has raised it before."""
        self.runs += 1
        try:
            run_once(run, data)
        except Exception as error:  # noqa: BLE001 - this is what fuzzing looks for
            place = _place(error)
            if place not in self._places:
                self._places.add(place)
                self._save(data, error)

    def _save(self, data: bytes, error: Exception) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(data).hexdigest()[:16]
        (self._folder / name).write_bytes(data)
        (self._folder / f"{name}.txt").write_text(
            "".join(traceback.format_exception(error)), errors="backslashreplace"
        )


def _place(error: Exception) -> str:
    """Return the type of an exception and the line that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    return f"{type(error).__name__} {[(frame.filename, frame.lineno) for frame in last]}"
