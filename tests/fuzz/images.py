"""Targets of image bytes: inputs of the worker and the client, results, previews, uploads, and PNG metadata."""

import io
import json
from contextlib import suppress

from PIL import Image

from imagegen_client.input_images import read_image
from imagegen_client.progress import make_progress
from imagegen_client.result import GenerationResult
from imagegen_gateway.errors import ApiError
from imagegen_gateway.input_images import decode_base64, read_inputs
from imagegen_protocol import InvalidRequestError, ProtocolError
from imagegen_protocol.images import read_size, sniff_format
from imagegen_protocol.limits import MAX_PREVIEW_SIDE_PIXELS, MAX_SIDE_PIXELS
from imagegen_protocol.messages import Error, ImageInfo, Progress, Result
from imagegen_protocol.request import make_request
from imagegen_worker.core.capabilities import TaskCapabilities
from imagegen_worker.core.model import Model
from imagegen_worker.images.decoding import decode_inputs
from imagegen_worker.images.files import PARAMETERS_KEY, encode_image
from tests.fuzz.choices import Choices
from tests.fuzz.wire import check_error
from tests.unit.worker.bench import resolved

_PIXELS = 256 * 1024
"""Larger images are skipped unless they are too large for the product, because decoding them takes long."""
_MODEL = Model(
    name="m",
    num_inference_steps=4,
    guidance_scale=1.0,
    width=64,
    height=64,
    size_multiple=8,
    max_side=512,
    tasks={task: TaskCapabilities(strength=0.5) for task in ("image-to-image", "inpainting")},
)


def _takes_long(data: bytes) -> bool:
    """Return whether an image is allowed, but takes much time and memory to decode."""
    try:
        width, height = read_size(data) or Image.open(io.BytesIO(data)).size
    except Exception:  # noqa: BLE001 - the target finds out
        return False
    return width * height > _PIXELS and max(width, height) <= MAX_SIDE_PIXELS


def image_size(data: bytes) -> None:
    """Read format and size from the first bytes."""
    size = read_size(data)
    assert size is None or (sniff_format(data) in ("png", "jpeg") and min(size) >= 0)
    assert sniff_format(memoryview(data)) == sniff_format(data)
    assert read_size(memoryview(data)) == size


def worker_input(data: bytes) -> None:
    """Decode an input image and a mask in the worker."""
    if _takes_long(data):
        return
    for names in (["image"], ["image", "mask_image"]):
        request = make_request(prompt="p", seed=1, inputs=names)
        try:
            decoded = decode_inputs(request, _MODEL, [data] * len(names))
        except InvalidRequestError as error:
            check_error(Error(code=error.code, message=error.message))
            return
        assert decoded.image.mode == "RGB"
        assert decoded.image.size == (decoded.width, decoded.height)


def result_image(data: bytes) -> None:
    """Decode and save an image of a result; the header states a size that may be the true one."""
    choices = Choices(data)
    format_, true_size = choices.pick(("png", "jpeg", "webp")), choices.boolean()
    frame = choices.rest()
    if _takes_long(frame):
        return
    width, height = (true_size and read_size(frame)) or (8, 8)
    if max(width, height) > MAX_SIDE_PIXELS:
        return
    info = ImageInfo(format=format_, width=width, height=height, seed=1)
    header = Result(request_id=bytes(16), worker="w", model="m", images=[info])
    result = GenerationResult(header, [memoryview(frame)], 1.0)
    try:
        image = result.image
    except (ProtocolError, OSError) as error:
        str(error)
        return
    assert image.size == (width, height)
    image.convert("RGB").save(io.BytesIO(), "PNG")


def preview(data: bytes) -> None:
    """Take a preview from a progress message and decode it."""
    progress = make_progress(Progress(request_id=bytes(16)), (data,))
    if progress.preview is None:
        return
    with suppress(ProtocolError, OSError):
        image = progress.preview_image
        assert image is not None
        assert max(image.size) <= MAX_PREVIEW_SIDE_PIXELS


def client_input(data: bytes) -> None:
    """Read an input image in the client: any format that Pillow knows."""
    if _takes_long(data):
        return
    try:
        sent = read_image("image", data)
    except InvalidRequestError as error:
        check_error(Error(code=error.code, message=error.message))
        return
    assert sniff_format(sent) is not None


def gateway_upload(data: bytes) -> None:
    """Check an uploaded image and an uploaded mask."""
    if _takes_long(data):
        return
    for name in ("image", "mask_image"):
        with suppress(ApiError):
            assert read_inputs({name: (name, data)}, sets_size=True).frames == {name: data}


def base64_image(data: bytes) -> None:
    """Decode an image in a JSON body: base64 or a `data:` URL."""
    with suppress(ApiError):
        decode_base64("image", data.decode("utf-8", "replace"))


def png_metadata(data: bytes) -> None:
    """Write any prompt into the metadata of a PNG, and read it back."""
    choices = Choices(data)
    size = choices.integer(0, 255)
    prompt, negative = (part.decode("utf-8", "replace") for part in (choices.bytes(size), choices.rest()))
    request = resolved(prompt=prompt or "p", negative_prompt=negative or None, width=8, height=8)
    image = Image.open(io.BytesIO(encode_image(Image.new("RGB", (8, 8)), request, 1)))
    image.load()
    found = json.loads(image.text[PARAMETERS_KEY])
    assert (found["prompt"], found.get("negative_prompt")) == (request.prompt, request.negative_prompt)
