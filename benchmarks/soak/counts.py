"""What became of the requests of one client."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from imagegen_common.files import replacing

MAX_TOLD = 20
"""Messages kept of what went wrong."""


@dataclass(slots=True)
class Counts:
    """Requests by kind and end. Lost: no end, or a wrong error. Wrong: the answer to something else."""

    sent: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    wrong: int = 0
    retries: int = 0
    """Calls of a gateway made again because it was being restarted."""
    told: list[str] = field(default_factory=list)

    def lose(self, text: str) -> None:
        """Count a request as lost."""
        self.lost += 1
        self.told = [*self.told, text][:MAX_TOLD]

    def find_wrong(self, text: str) -> None:
        """Count an answer as wrong."""
        self.wrong += 1
        self.told = [*self.told, text][:MAX_TOLD]

    def write(self, path: Path) -> None:
        """Write them as JSON, whole or not at all."""
        names = ("sent", "ended", "lost", "wrong", "retries", "told")
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({name: getattr(self, name) for name in names}))

    def add(self, path: Path) -> None:
        """Add what another process has written. Raises `OSError` if it has not."""
        other = json.loads(path.read_text())
        self.sent.update(other["sent"])
        self.ended.update(other["ended"])
        self.lost += other["lost"]
        self.wrong += other["wrong"]
        self.retries += other["retries"]
        self.told = [*self.told, *other["told"]][:MAX_TOLD]
