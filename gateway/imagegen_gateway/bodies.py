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
from imagegen_protocol.parameters import IMAGE_PARAMETERS

MAX_FILES = 8
"""Maximum number of files in a form."""
MAX_FIELDS = 100
"""Maximum number of other fields in a form."""

_PART_BYTES = 64 * 1024
_IMAGE_FIELDS = frozenset(parameter.http_name for parameter in IMAGE_PARAMETERS.values())


class BodyRequest(Request):
    """A request whose body is parsed in a thread, within limits on its values, fields and texts."""

    async def json(self) -> Any:
        """Return the value of the JSON body. Raises `ApiError` 400 and 422."""
        try:
            return await self._run(parse_json, await self.body(), _IMAGE_FIELDS)
        except JsonError as error:
            raise ApiError(400, "invalid_json", f"the body is not valid JSON: {error}") from error
        except JsonTooLargeError as error:
            message = f"{error.field or 'body'}: {error}"
            raise ApiError(422, "invalid_value", message, param=error.field) from error

    async def form(self, **_: Any) -> FormData:  # type: ignore[override]
        """Return the fields of a multipart body; none for other content types. Raises `ApiError` 400."""
        try:
            fields: FormData = await self._run(_parse_form, self.headers, await self.body())
        except MultiPartException as error:
            raise ApiError(400, "bad_request", f"the request can't be parsed: {error.message}") from error
        return fields

    async def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await get_services(self).threads.run(get_admission(self).api_key.id, function, *arguments)


class BodyRoute(APIRoute):
    """A route whose body is a `BodyRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function that handles a request."""
        handle = super().get_route_handler()

        async def handle_bounded(request: Request) -> Response:
            return await handle(BodyRequest(request.scope, request.receive))

        return handle_bounded


class _MemoryParser(MultiPartParser):
    spool_max_size = 2**31
    """Larger than any body: the files stay in memory, as the body does."""


def _parse_form(headers: Headers, body: bytes) -> FormData:
    """Return the fields of a multipart body. Raises `MultiPartException`."""
    if not headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return FormData()
    parser = _MemoryParser(
        headers, _parts(body), max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=MAX_TEXT
    )
    # The parser is a coroutine, but waits for nothing: its files are in memory.
    return asyncio.run(parser.parse())


async def _parts(body: bytes) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(body), _PART_BYTES):
        yield body[start : start + _PART_BYTES]
