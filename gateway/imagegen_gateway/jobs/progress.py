"""The progress of a running job, for any number of followers."""

import asyncio
import base64
from typing import Any

from imagegen_client import Progress
from imagegen_gateway.results import finite


class JobProgress:
    """The latest progress report of a job. Slow followers miss reports, but never the end of the job."""

    def __init__(self) -> None:
        self.latest: Progress | None = None
        self.preview: bytes | None = None
        self.finished = False
        self._changed: asyncio.Future[None] | None = None

    def update(self, report: Progress) -> None:
        """Store a progress report and wake the followers."""
        self.latest = report
        self.preview = None if report.state != "running" else report.preview or self.preview
        self._wake()

    def finish(self) -> None:
        """Mark the job as ended and wake the followers; the job store has the outcome."""
        self.finished = True
        self._wake()

    def changed(self) -> asyncio.Future[None]:
        """Return a future that is done after the next report or the end; it is shared, so do not cancel it."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
            if self.finished:
                self._changed.set_result(None)
        return self._changed

    def fields(self) -> dict[str, Any]:
        """Return the progress fields of the job's API representation; empty before the first report."""
        if self.latest is None or self.finished:
            return {}
        if self.latest.state != "running":
            return {"place": self.latest.place, "seconds_to_start": finite(self.latest.seconds_to_start)}
        return {"step": self.latest.step, "steps": self.latest.steps}

    def _wake(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None and not changed.done():
            changed.set_result(None)


def image_data_url(image: bytes) -> str:
    """Return a preview (PNG or JPEG) as a `data:` URL."""
    media_type = "jpeg" if image.startswith(b"\xff\xd8") else "png"
    return f"data:image/{media_type};base64,{base64.b64encode(image).decode()}"
