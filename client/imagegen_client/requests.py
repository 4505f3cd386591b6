"""Keyword arguments to a checked request."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import msgspec

from imagegen_protocol import InvalidRequestError, encode_request
from imagegen_protocol.explain import explain
from imagegen_protocol.frames import encode
from imagegen_protocol.messages import Submit
from imagegen_protocol.request import make_request


class RequestOptions(TypedDict, total=False):
    """All that can be said about a request beside its prompt; absent or None: the model's own default."""

    seed: int | None
    """0 … 2⁶³−1; random if None. Image `i` of several is made with `seed + i`."""
    negative_prompt: str | None
    num_inference_steps: int | None
    guidance_scale: float | None
    width: int | None
    """Pixels."""
    height: int | None
    """Pixels."""
    num_images: int
    loras: Sequence[Mapping[str, str | float]] | None
    """LoRAs that the workers have, such as `[{"name": "ink", "scale": 0.8}]`; without a scale it is 1."""
    model: str | None
    """None: the broker's default model."""
    priority: int
    """−100 … 100, the higher the earlier."""
    timeout_seconds: float | None
    """Then `DeadlineExceededError`; None waits as long as it takes."""


_HEADER_OPTIONS = ("model", "priority", "timeout_seconds")


def build(
    prompt: str,
    options: RequestOptions,
    *,
    request_id: bytes,
    seed: int,
    progress: bool = False,
    preview: bool = False,
) -> tuple[Submit, int, bytes]:
    """Return header, seed and body frame of a request; `seed` is taken where the options have none.

    Raises `InvalidRequestError` naming the field, its value and the range.
    """
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    header = {name: given.pop(name) for name in _HEADER_OPTIONS if name in given}
    request = make_request(**{"prompt": prompt, "seed": seed, **given})
    header |= {"progress": progress, "preview": preview}
    try:
        submit = msgspec.convert({"type": "submit", "request_id": request_id, **header}, Submit)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(explain(header, str(error))) from error
    try:
        # Here, where somebody hears of it: the header is encoded again on the I/O thread.
        encode(submit)
        return submit, request.seed, encode_request(request)
    except UnicodeEncodeError as error:
        texts = {"prompt": prompt, **given, **header}
        name = next((name for name, value in texts.items() if value == error.object), "loras")
        shown = ascii(error.object[max(0, error.start - 20) : error.end + 20])
        raise InvalidRequestError(f"{name}: expected text that UTF-8 can carry, got {shown}") from error
