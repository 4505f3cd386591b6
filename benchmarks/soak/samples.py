"""What each process holds, sampled on a thread and written down at once."""

import csv
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil


@dataclass(frozen=True, slots=True)
class Life:
    """One process from start to end: the `number`th of its name."""

    name: str
    role: str
    number: int
    pid: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at one process; memory in bytes, times in seconds from the start of the soak."""

    seconds: float
    name: str
    role: str
    number: int
    pid: int
    rss: int
    uss: int
    """What would be free if this process ended: memory that it shares with nobody."""
    fds: int
    threads: int
    cpu: float
    """CPU seconds that it has used since it was started."""


def look(life: Life, seconds: float) -> Sample | None:
    """Return a sample of a process; None if it has ended."""
    try:
        process = psutil.Process(life.pid)
        with process.oneshot():
            memory, cpu, fds = process.memory_full_info(), process.cpu_times(), process.num_fds()
            if not (memory.uss and fds):  # it is ending: memory goes first, then descriptors
                return None
            return Sample(
                round(seconds, 2),
                life.name,
                life.role,
                life.number,
                life.pid,
                memory.rss,
                memory.uss,
                fds,
                process.num_threads(),
                round(cpu.user + cpu.system, 2),
            )
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


class Sampler:
    """Looks at all that live every `every` seconds, until the context is left."""

    def __init__(self, path: Path, lives: Callable[[], Iterable[Life]], every: float) -> None:
        self._path = path
        self._lives = lives
        self._every = every
        self._over = threading.Event()
        self._begun = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="sampler")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._begun

    def _run(self) -> None:
        with self._path.open("w", newline="") as file:
            table = csv.DictWriter(file, [field.name for field in fields(Sample)])
            table.writeheader()
            due = self._begun
            while not self._over.wait(max(0.0, due - time.monotonic())):
                due += self._every
                for life in list(self._lives()):
                    if (sample := look(life, self.seconds)) is not None:
                        table.writerow(asdict(sample))
                file.flush()


def read(path: Path) -> list[Sample]:
    """Return the samples of a file."""
    texts = ("name", "role")
    fractions = ("seconds", "cpu")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = []
    for row in rows:
        values: dict[str, Any] = {
            name: text if name in texts else float(text) if name in fractions else int(text)
            for name, text in row.items()
        }
        found.append(Sample(**values))
    return found
