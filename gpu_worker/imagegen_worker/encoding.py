"""Images to bytes, on a few threads beside the device's, so that the device never waits for zlib."""

import io
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image
from PIL import PngImagePlugin as PngImagePlugin  # so that the first image need not look for its encoder

from imagegen_protocol.errors import GenerationFailedError
from imagegen_protocol.limits import MAX_PREVIEW_SIDE_PIXELS
from imagegen_protocol.messages import ImageInfo
from imagegen_worker.backends import Sketch
from imagegen_worker.core.events import Failed, Finished, Previewed
from imagegen_worker.mailbox import Mailbox

PNG_COMPRESS_LEVEL = 4
"""6, Pillow's default, takes twice as long for files a tenth smaller."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RawResult:
    """The images of a job as they left the device, one for each seed; seconds of wall time."""

    number: int
    images: tuple[Image.Image, ...]
    seeds: tuple[int, ...]
    batch_size: int
    queue_seconds: float
    generation_seconds: float


class EncodePool:
    """Encodes results and posts each as `Finished`, or as `Failed` if it can't be encoded."""

    def __init__(self, mailbox: Mailbox, threads: int = 2) -> None:
        self._mailbox = mailbox
        self._sketched: set[int] = set()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="encode")

    def submit(self, raw: RawResult) -> None:
        """Take a result; return at once."""
        self._threads.submit(self._work, raw)

    def sketch(self, number: int, sketch: Sketch) -> None:
        """Take a sketch of a job; return at once. A job of which one waits already gets no second one."""
        if number in self._sketched:
            return
        self._sketched.add(number)
        self._threads.submit(self._draw, number, sketch)

    def close(self) -> None:
        """Wait for what is being encoded; what has not begun is dropped."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _draw(self, number: int, sketch: Sketch) -> None:
        try:
            image = sketch()
            image.thumbnail((MAX_PREVIEW_SIDE_PIXELS, MAX_PREVIEW_SIDE_PIXELS))
            self._mailbox.post(Previewed(number, encode_png(image)))
        except Exception:  # noqa: BLE001 - the image itself goes on, and a preview is not missed
            _log.warning("a preview could not be made", exc_info=True)
        finally:
            self._sketched.discard(number)

    def _work(self, raw: RawResult) -> None:
        begun = time.monotonic()
        try:
            encoded = tuple(encode_png(image) for image in raw.images)
        except Exception as error:  # noqa: BLE001 - whatever it is, the request must get an answer
            message = f"the image could not be encoded: {type(error).__name__}: {error}"
            self._mailbox.post(Failed(raw.number, GenerationFailedError.code, message))
            return
        infos = tuple(
            ImageInfo(format="png", width=image.width, height=image.height, seed=seed)
            for image, seed in zip(raw.images, raw.seeds, strict=True)
        )
        self._mailbox.post(
            Finished(
                number=raw.number,
                images=encoded,
                infos=infos,
                batch_size=raw.batch_size,
                queue_seconds=raw.queue_seconds,
                generation_seconds=raw.generation_seconds,
                encode_seconds=time.monotonic() - begun,
            )
        )


def encode_png(image: Image.Image) -> bytes:
    """Return an image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=PNG_COMPRESS_LEVEL)
    return buffer.getvalue()
