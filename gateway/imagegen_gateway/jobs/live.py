"""How a job stands at this moment, for any number of followers; nobody is waited for."""

import asyncio
import base64
from typing import Any

from imagegen_client import Progress


class Live:
    """The latest sign of a job. A follower who is slow misses signs, never the end."""

    def __init__(self) -> None:
        self.sign: Progress | None = None
        self.preview: bytes | None = None
        self.over = False
        self._news: asyncio.Future[None] | None = None

    def tell(self, sign: Progress) -> None:
        """Take a sign of progress."""
        self.sign = sign
        self.preview = None if sign.state == "queued" else sign.preview or self.preview
        self._wake()

    def end(self) -> None:
        """Say that the job has ended, and that the store knows how."""
        self.over = True
        self._wake()

    def news(self) -> asyncio.Future[None]:
        """Return a future that is done with the next sign, or the end; shield it, others have it too."""
        if self._news is None:
            self._news = asyncio.get_running_loop().create_future()
            if self.over:
                self._news.set_result(None)
        return self._news

    def fields(self) -> dict[str, Any]:
        """Return what it adds to the job's own fields."""
        if self.sign is None or self.over:
            return {}
        if self.sign.state == "queued":
            return {"place": self.sign.place, "seconds_to_start": self.sign.seconds_to_start}
        return {"step": self.sign.step, "steps": self.sign.steps}

    def _wake(self) -> None:
        news, self._news = self._news, None
        if news is not None and not news.done():
            news.set_result(None)


def picture_url(picture: bytes) -> str:
    """Return a preview, which is a PNG or a JPEG, as a `data:` URL."""
    kind = "jpeg" if picture.startswith(b"\xff\xd8") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
