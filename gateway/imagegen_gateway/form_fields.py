"""Fields of an edit, from a form or from JSON: each once, images as files and all others as text."""

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from starlette.datastructures import FormData, UploadFile

from imagegen_gateway.errors import ApiError
from imagegen_gateway.input_images import decode_base64
from imagegen_protocol.parameters import IMAGE_PARAMETERS

IMAGE_FIELDS = frozenset(each.http_name for each in IMAGE_PARAMETERS.values() if each.kind == "image")
IMAGE_LIST = "images"
"""Field of OpenAI's JSON bodies: a list of images."""
_IMAGE = "image"
_REPEATED = "image[]"
"""Field of forms that may be sent several times."""


def check_fields(form: FormData) -> FormData:
    """Return the fields of a form with images as files; several of `image` become `image[]`.

    Raises `ApiError` 400 for another field that is sent twice.
    """
    names = Counter(name for name, _ in form.multi_items())
    for name, count in names.items():
        if count > 1 and name not in (_IMAGE, _REPEATED):
            expected = "one image" if name in IMAGE_FIELDS else "it once"
            raise _invalid(name, f"expected {expected}, got {count} fields of this name")
    images = _REPEATED if names[_IMAGE] > 1 else _IMAGE
    return FormData(
        [(images if name == _IMAGE else name, _form_value(name, value)) for name, value in form.multi_items()]
    )


def to_fields(body: Any) -> FormData:
    """Return the fields of a JSON object as those of a form. Raises `ApiError` 400."""
    if not isinstance(body, Mapping):
        raise ApiError(400, "invalid_value", "body: expected a JSON object with the fields of the form")
    return FormData(list(_json_fields(body)))


def _json_fields(body: Mapping[str, Any]) -> Iterator[tuple[str, str | UploadFile]]:
    for name, value in body.items():
        if value is None:
            continue
        if name in (*IMAGE_FIELDS, IMAGE_LIST, _REPEATED):
            several = isinstance(value, list)
            for item in value if several else [value]:
                yield _REPEATED if several else name, _json_image(name, item)
        else:
            yield name, value if isinstance(value, str) else json.dumps(value)


def _form_value(name: str, value: str | UploadFile) -> str | UploadFile:
    if name in (*IMAGE_FIELDS, _REPEATED):
        if isinstance(value, UploadFile):
            return value
        try:
            return _file(decode_base64(name, value))
        except ApiError as error:
            expected = "expected a file (curl -F image=@FILE), base64 or a data: URL"
            raise _invalid(name, f"{expected}, got other text") from error
    if isinstance(value, UploadFile):
        raise _invalid(name, f"expected text, got a file (curl -F '{name}=<FILE' sends its text)")
    return value


def _json_image(name: str, value: Any) -> UploadFile:
    """Return an image of a JSON body: text, or OpenAI's object with `image_url`."""
    text = value.get("image_url") if isinstance(value, Mapping) else value
    if not isinstance(text, str):
        raise _invalid(name, 'expected base64, a data: URL, or {"image_url": "data:…"}')
    return _file(decode_base64(name, text))


def _file(data: bytes) -> UploadFile:
    return UploadFile(io.BytesIO(data), size=len(data), filename="image")


def _invalid(name: str, message: str) -> ApiError:
    return ApiError(400, "invalid_value", f"{name}: {message}", param=name)
