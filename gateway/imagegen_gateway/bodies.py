"""Request bodies: read after admission, and parsed within limits in a thread."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import FormData, Headers
from starlette.formparsers import MultiPartException, MultiPartParser

from imagegen_gateway.access import get_services
from imagegen_gateway.admission import get_admission
from imagegen_gateway.core.json_bounds import MAX_TEXT, JsonError, JsonTooLargeError, parse_json
from imagegen_gateway.errors import ApiError
from imagegen_gateway.form_fields import IMAGE_FIELDS, IMAGE_LIST, check_fields, to_fields
from imagegen_protocol.limits import MAX_INPUTS

MAX_FILES = MAX_INPUTS
"""Maximum number of files in a form."""
MAX_FIELDS = 100
"""Maximum number of other fields in a form."""

_PART_BYTES = 64 * 1024
_FORM = "multipart/form-data"
_JSON_HEADER = (b"content-type", b"application/json")
_LONG_FIELDS = frozenset({*IMAGE_FIELDS, IMAGE_LIST})


class BodyRequest(Request):
    """A request whose body is parsed in a thread, within limits on its values, fields and texts.

    JSON is accepted with any Content-Type, as `curl -d` sends that of a form. A path for forms accepts JSON too.
    """

    def __init__(self, request: Request) -> None:
        self._sent = Headers(raw=request.scope["headers"])
        others = [header for header in request.scope["headers"] if header[0] != b"content-type"]
        # FastAPI parses a body only if this header states its type.
        super().__init__({**request.scope, "headers": [*others, _JSON_HEADER]}, request.receive)

    async def json(self) -> Any:
        """Return the value of the JSON body. Raises `ApiError` 400."""
        return await self._run(_parse_json, self._sent.get("content-type", ""), await self.body())

    async def form(self, **_: Any) -> FormData:  # type: ignore[override]
        """Return the fields of a form or of a JSON object; images are files. Raises `ApiError` 400."""
        fields: FormData = await self._run(_parse_fields, self._sent, await self.body())
        return fields

    async def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await get_services(self).threads.run(get_admission(self).api_key.id, function, *arguments)


class BodyRoute(APIRoute):
    """A route whose body is a `BodyRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function that handles a request."""
        handle = super().get_route_handler()

        async def handle_bounded(request: Request) -> Response:
            return await handle(BodyRequest(request))

        return handle_bounded


def _parse_json(content_type: str, body: bytes) -> Any:
    """Return the value of a JSON body. Raises `ApiError` 400, which names the expected Content-Type."""
    if _is_form(content_type):
        message = f"the body is a form ({_FORM}), and this path expects JSON (Content-Type: application/json)"
        raise ApiError(400, "invalid_json", message)
    try:
        return parse_json(body, _LONG_FIELDS)
    except JsonError as error:
        sent = content_type.partition(";")[0].strip().lower()
        hint = "" if sent.endswith("json") else "; expected JSON (Content-Type: application/json)"
        raise ApiError(400, "invalid_json", f"the body is not valid JSON: {error}{hint}") from error
    except JsonTooLargeError as error:
        message = f"{error.field or 'body'}: {error}"
        raise ApiError(400, "invalid_value", message, param=error.field) from error


def _parse_fields(headers: Headers, body: bytes) -> FormData:
    """Return the fields of a form or of a JSON object. Raises `ApiError` 400."""
    content_type = headers.get("content-type", "")
    if _is_form(content_type):
        try:
            form = _parse_form(headers, body)
        except MultiPartException as error:
            raise ApiError(400, "bad_request", f"the form can't be parsed: {error.message}") from error
        try:
            return check_fields(form)
        except ApiError:
            for _, value in form.multi_items():
                if not isinstance(value, str):
                    value.file.close()
            raise
    if not body or "json" in content_type.lower() or body.lstrip()[:1] == b"{":
        return to_fields(_parse_json(content_type, body) if body else {})
    sent = f"Content-Type: {content_type:.60}" if content_type else "no Content-Type"
    message = f"expected a form ({_FORM}, curl -F) or JSON (Content-Type: application/json), got {sent}"
    raise ApiError(400, "bad_request", message)


def _is_form(content_type: str) -> bool:
    return content_type.lower().startswith(_FORM)


class _MemoryParser(MultiPartParser):
    spool_max_size = 2**31
    """Larger than any body: the files stay in memory, as the body does."""


def _parse_form(headers: Headers, body: bytes) -> FormData:
    """Return the fields of a multipart body. Raises `MultiPartException`."""
    parser = _MemoryParser(
        headers, _parts(body), max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=MAX_TEXT
    )
    # The parser is a coroutine, but waits for nothing: its files are in memory.
    return asyncio.run(parser.parse())


async def _parts(body: bytes) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(body), _PART_BYTES):
        yield body[start : start + _PART_BYTES]
