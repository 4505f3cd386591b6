"""Images to bytes and back, on a few threads beside the device's, so that the device never waits for zlib."""

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from imagegen_protocol.errors import GenerationFailedError, InvalidRequestError
from imagegen_protocol.limits import MAX_PREVIEW_SIDE_PIXELS
from imagegen_protocol.messages import ImageInfo
from imagegen_worker.backends import Sketch
from imagegen_worker.core.events import Decode, Decoded, Failed, Finished, Previewed
from imagegen_worker.core.model import ResolvedRequest
from imagegen_worker.images.decoding import decode_inputs
from imagegen_worker.images.files import encode_image, encode_png
from imagegen_worker.mailbox import Mailbox

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RawResult:
    """The images of a job as they left the device, one for each seed of its request; seconds of wall time."""

    number: int
    images: tuple[Image.Image, ...]
    request: ResolvedRequest
    batch_size: int
    queue_seconds: float
    generation_seconds: float


class EncodePool:
    """Encodes results and posts each as `Finished`, or as `Failed` if it can't be encoded.

    Decodes the images of requests and posts each as `Decoded`, or as `Failed` if they are not what they should be.
    `decode` and `forget` belong to one thread.
    """

    def __init__(self, mailbox: Mailbox, threads: int = 2) -> None:
        self._mailbox = mailbox
        self._sketched: set[int] = set()
        self._decoding: dict[int, Future[None]] = {}
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

    def decode(self, wanted: Decode) -> None:
        """Take the images of a request; return at once."""
        self._decoding = {number: future for number, future in self._decoding.items() if not future.done()}
        self._decoding[wanted.number] = self._threads.submit(self._read, wanted)

    def forget(self, number: int) -> None:
        """Nobody wants this job any more: don't begin with its images."""
        if (future := self._decoding.pop(number, None)) is not None:
            future.cancel()

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

    def _read(self, wanted: Decode) -> None:
        try:
            request = decode_inputs(wanted.request, wanted.model, wanted.frames)
        except InvalidRequestError as error:
            self._mailbox.post(Failed(wanted.number, error.code, error.message))
        except Exception as error:  # noqa: BLE001 - whatever it is, the request must get an answer
            message = f"the images could not be decoded: {type(error).__name__}: {error}"
            self._mailbox.post(Failed(wanted.number, GenerationFailedError.code, message))
        else:
            self._mailbox.post(Decoded(wanted.number, request))

    def _work(self, raw: RawResult) -> None:
        begun = time.monotonic()
        request = raw.request
        try:
            encoded = tuple(
                encode_image(image, request, seed) for image, seed in zip(raw.images, request.seeds, strict=True)
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, the request must get an answer
            message = f"the image could not be encoded: {type(error).__name__}: {error}"
            self._mailbox.post(Failed(raw.number, GenerationFailedError.code, message))
            return
        infos = tuple(
            ImageInfo(format=request.output_format, width=image.width, height=image.height, seed=seed)
            for image, seed in zip(raw.images, request.seeds, strict=True)
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
