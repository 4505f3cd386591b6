"""Decoding and encoding of images on their own threads, so that the device thread never waits for them."""

import ctypes
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from imagegen_protocol.errors import GenerationFailedError, InvalidRequestError
from imagegen_protocol.limits import MAX_PREVIEW_SIDE_PIXELS
from imagegen_protocol.messages import ImageInfo
from imagegen_worker.backends import GeneratedImage, Sketch, completed
from imagegen_worker.core.events import Decode, Decoded, Failed, Finished, Previewed
from imagegen_worker.core.model import ResolvedRequest
from imagegen_worker.images.decoding import decode_inputs
from imagegen_worker.images.files import encode_image, encode_png
from imagegen_worker.mailbox import Mailbox

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RawResult:
    """The images of a job, one for each seed of its request. Seconds of wall time."""

    number: int
    images: tuple[GeneratedImage, ...]
    request: ResolvedRequest
    batch_size: int
    queue_seconds: float
    generation_seconds: float


_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""Function of glibc; other C libraries don't keep freed memory."""


def _return_memory() -> None:
    """Return the memory of decoded images to the system: threads keep it in heaps of their own otherwise."""
    if _malloc_trim is not None:
        _malloc_trim(0)


class EncodePool:
    """Encodes results and previews, and decodes input images, on threads.

    Posts `Finished`, `Previewed` and `Decoded`, or `Failed`. Only one thread may call `decode` and `cancel`.
    """

    def __init__(self, mailbox: Mailbox, threads: int = 2) -> None:
        self._mailbox = mailbox
        self._previewing: set[int] = set()
        self._decoding: dict[int, Future[None]] = {}
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="encode")

    def submit(self, raw: RawResult) -> None:
        """Queue a result for encoding."""
        self._threads.submit(self._encode_result, raw)

    def sketch(self, number: int, sketch: Sketch) -> None:
        """Queue a preview of a job, unless one is queued already."""
        if number in self._previewing:
            return
        self._previewing.add(number)
        self._threads.submit(self._encode_preview, number, sketch)

    def decode(self, command: Decode) -> None:
        """Queue the input images of a request for decoding."""
        self._decoding = {number: future for number, future in self._decoding.items() if not future.done()}
        self._decoding[command.number] = self._threads.submit(self._decode, command)

    def cancel(self, number: int) -> None:
        """Cancel the decoding of a job's input images, if it has not started."""
        if (future := self._decoding.pop(number, None)) is not None:
            future.cancel()

    def close(self) -> None:
        """Discard the queued tasks, and wait until the running ones have ended."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _encode_preview(self, number: int, sketch: Sketch) -> None:
        try:
            image = sketch()
            image.thumbnail((MAX_PREVIEW_SIDE_PIXELS, MAX_PREVIEW_SIDE_PIXELS))
            self._mailbox.post(Previewed(number, encode_png(image)))
        except Exception:  # noqa: BLE001 - the image itself is not affected
            _log.warning("preview failed", exc_info=True)
        finally:
            self._previewing.discard(number)

    def _decode(self, command: Decode) -> None:
        try:
            request = decode_inputs(command.request, command.model, command.frames)
        except InvalidRequestError as error:
            self._mailbox.post(Failed(command.number, error.code, error.message))
        except Exception as error:  # noqa: BLE001 - every request must get an answer
            message = f"the images could not be decoded: {type(error).__name__}: {error}"
            self._mailbox.post(Failed(command.number, GenerationFailedError.code, message))
        else:
            self._mailbox.post(Decoded(command.number, request))
        finally:
            _return_memory()

    def _encode_result(self, raw: RawResult) -> None:
        started = time.monotonic()
        request = raw.request
        try:
            images = [completed(image) for image in raw.images]
            encoded = tuple(
                encode_image(image, request, seed) for image, seed in zip(images, request.seeds, strict=True)
            )
        except Exception as error:  # noqa: BLE001 - every request must get an answer
            message = f"the image could not be encoded: {type(error).__name__}: {error}"
            self._mailbox.post(Failed(raw.number, GenerationFailedError.code, message))
            return
        infos = tuple(
            ImageInfo(format=request.output_format, width=image.width, height=image.height, seed=seed)
            for image, seed in zip(images, request.seeds, strict=True)
        )
        self._mailbox.post(
            Finished(
                number=raw.number,
                images=encoded,
                infos=infos,
                batch_size=raw.batch_size,
                queue_seconds=raw.queue_seconds,
                generation_seconds=raw.generation_seconds,
                encode_seconds=time.monotonic() - started,
                warnings=request.warnings,
            )
        )
