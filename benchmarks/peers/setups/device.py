"""The work that all peers do, and its setting: a device with the cost model of imagegen's simulated backend."""

import fcntl
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "IMAGEGEN_PEERS_WORK"
"""Its value is a `Work` in JSON; all processes of a peer inherit it, by which they are found at the end."""
STEPS = 20
"""Sleeps that a batch is made of, as many as the simulated backend's default steps."""
RESULT_BYTES = 1000
ACCOUNT = "executions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be done; a batch of n takes `(batch_seconds + n * image_seconds) / speed`."""

    scenario: str
    folder: str
    """Of this run alone: logs, slots, the account of executions."""
    speeds: tuple[float, ...]
    """One for each worker."""
    batch_seconds: float
    image_seconds: float
    max_batch_size: int
    batch_wait: float
    """Seconds that a request waits for company, where the peer batches."""
    requests: int
    rounds: int
    seconds: float
    """Of measuring, for rates and latencies."""
    patience: float
    """Seconds after which an answer is taken to be lost."""

    @classmethod
    def of_environment(cls) -> "Work":
        """Return what the runner wants."""
        fields = json.loads(os.environ[VARIABLE])
        return cls(**{**fields, "speeds": tuple(fields["speeds"])})

    def as_environment(self) -> dict[str, str]:
        """Return the variable that tells a process and its children."""
        return {VARIABLE: json.dumps(asdict(self))}

    @property
    def batches(self) -> bool:
        """Say whether requests may share a batch."""
        return self.max_batch_size > 1

    @property
    def moment(self) -> float:
        """Seconds from the end of a batch until surely amid the next, a full one or of one image."""
        return self.batch_seconds

    @property
    def costs_nothing(self) -> bool:
        """Say whether the work is none."""
        return self.batch_seconds == self.image_seconds == 0


class Account:
    """What was begun and what was ended, by whom so ever: a line a request in a file of the run's folder."""

    def __init__(self, work: Work) -> None:
        self._file = os.open(Path(work.folder) / ACCOUNT, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(self, what: str, ids: Sequence[int | str]) -> None:
        """Say that these are `begun`, or `ended`."""
        # One write, so that lines of several processes don't mix; it is there even if we are killed.
        os.write(self._file, "".join(f"{what} {number}\n" for number in ids).encode())


class Device:
    """One worker's device. It takes the first free slot, which says how fast it is; that of a dead process is."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.slot = self._claim(Path(work.folder) / "slots")
        self._speed = work.speeds[self.slot]
        self._account = Account(work)
        self._result = str(os.getpid()).encode().ljust(RESULT_BYTES)

    def _claim(self, folder: Path) -> int:
        folder.mkdir(parents=True, exist_ok=True)
        for slot in range(len(self._work.speeds)):
            file = (folder / str(slot)).open("a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                continue
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            self._lock = file
            return slot
        raise RuntimeError(f"more than {len(self._work.speeds)} workers")

    def close(self) -> None:
        """Give the slot back, as the end of the process does."""
        self._lock.close()

    def run(self, ids: Sequence[int]) -> list[bytes]:
        """Make a batch; return about 1 kB for each."""
        if not self._work.costs_nothing:
            self._account.note("begun", ids)
            begun = time.monotonic()
            total = (self._work.batch_seconds + len(ids) * self._work.image_seconds) / self._speed
            for step in range(1, STEPS + 1):
                time.sleep(max(0.0, begun + total * step / STEPS - time.monotonic()))
            self._account.note("ended", ids)
        return [self._result] * len(ids)


_device: Device | None = None


def execute(ids: Sequence[int]) -> list[bytes]:
    """Make a batch on this process' device, for peers that call functions."""
    global _device
    if _device is None:
        _device = Device(Work.of_environment())
    return _device.run(ids)


def victim(work: Work) -> int:
    """Return the process that has the first slot."""
    return int((Path(work.folder) / "slots" / "0").read_text())
