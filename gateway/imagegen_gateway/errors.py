"""Errors as OpenAI's API has them: `{"error": {"message", "type", "param", "code"}}`."""

import logging
import math
import sqlite3
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from imagegen_common.logs import log
from imagegen_protocol import ImagegenError

_log = logging.getLogger("imagegen.gateway")


class ErrorObject(BaseModel):
    """What went wrong."""

    model_config = ConfigDict(extra="forbid")

    message: str
    """For people."""
    type: str
    """The family of the error."""
    param: str | None
    """The field of the request that is wrong, where it is one."""
    code: str | None
    """For programs; stable."""


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    model_config = ConfigDict(extra="forbid")

    error: ErrorObject


STORAGE_FAILED = "storage_failed"
_TYPES = {403: "permission_error", 429: "rate_limit_error", 401: "authentication_error"}


class ApiError(Exception):
    """An answer that is an error; `retry_after` in seconds. `final`: asking again gives the same."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        final: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
        if final:
            # OpenAI's clients ask again after any 5xx, unless told so.
            self.headers["x-should-retry"] = "false"

    def body(self) -> dict[str, Any]:
        """Return the body, as JSON has it."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the answer."""
        return JSONResponse(self.body(), self.status, self.headers)


_PARAMS = {
    "num_images": "n",
    "width": "size",
    "height": "size",
    "quality": "output_compression",
    "mask_image": "mask",
    "inputs": "image",
}
"""Fields that have another name here than on the wire."""

_STATUS: dict[str, tuple[int, float | None, bool]] = {
    "invalid_request": (422, None, False),
    "out_of_memory": (422, None, False),
    "model_not_found": (404, None, False),
    "overloaded": (503, 1.0, False),
    "broker_unreachable": (503, 5.0, False),
    "client_closed": (503, 5.0, False),
    "unauthorized": (503, 30.0, False),
    "deadline_exceeded": (504, None, True),
    "cancelled": (409, None, True),
    "generation_failed": (500, None, True),
    "poison_request": (500, None, True),
}
"""Status, Retry-After where the broker does not tell, and whether asking again is of no use."""


def from_imagegen_error(error: ImagegenError) -> ApiError:
    """Return the answer for an error of the fleet."""
    status, retry_after, final = _STATUS.get(error.code, (500, None, True))
    wait = error.retry_after_seconds if error.retry_after_seconds is not None else retry_after
    param = None
    message = error.message
    if error.code == "invalid_request":
        name, colon, rest = message.partition(":")
        if colon and name.isidentifier():
            param = _PARAMS.get(name, name)
            message = f"{param}:{rest}"
    if error.code == "model_not_found":
        param = "model"
    return ApiError(status, error.code, message, param=param, retry_after=wait, final=final)


def not_found(what: str, name: str) -> ApiError:
    """Return the answer for something that is not there, or not the api_key's."""
    return ApiError(404, f"{what}_not_found", f"there is no {what} {name!r} here")


def storage_failed(what: str, error: Exception) -> ApiError:
    """Return the answer while disk, database or store do not take or give anything; the log says why."""
    log(_log, logging.ERROR, "storage failed", what=what, error=f"{type(error).__name__}: {error}")
    return ApiError(503, STORAGE_FAILED, f"the gateway can't {what} now; ask again later", retry_after=10)


def from_validation_error(error: RequestValidationError) -> ApiError:
    """Return the answer for a body that is not as the schema says: field, what is wrong, and the value."""
    first = error.errors()[0]
    place = [part for part in first["loc"] if part not in ("body", "query", "header", "path")]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", first["msg"])
        return ApiError(400, "invalid_json", f"the body is not JSON: {reason}")
    param = ".".join(str(part) for part in place) or None
    if first["type"] == "missing":
        return ApiError(422, "missing_field", f"{param or 'the body'}: missing", param=param)
    if first["type"] == "extra_forbidden":
        return ApiError(422, "unknown_field", f"{param}: there is no such field; see /openapi.json", param=param)
    what = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] == "value_error" else f", got {_shown(first.get('input'))}"
    return ApiError(
        422, "invalid_value", f"{param or 'the body'}: {what[0].lower()}{what[1:]}{given}", param=param
    )


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


_HTTP_CODES = {
    404: ("not_found", "there is nothing at this path; see /openapi.json"),
    405: ("method_not_allowed", "this path has other methods; see /openapi.json"),
    408: ("too_slow", "the body took too long to come"),
    413: ("too_large", "the body is longer than this gateway takes (--max-body-bytes)"),
    400: ("bad_request", "the body can't be read"),
}


def install(app: FastAPI) -> None:
    """Make every error of the application an error object."""

    async def api(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        if error.code == STORAGE_FAILED:
            request.app.state.services.metrics.storage_failures.inc()
        return error.response()

    async def fleet(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ImagegenError)
        return from_imagegen_error(error).response()

    async def validation(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return from_validation_error(error).response()

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code, words = _HTTP_CODES.get(error.status_code, ("http_error", str(error.detail)))
        if error.status_code == 400:
            words = f"{words}: {error.detail}"
        return ApiError(error.status_code, code, words, headers=error.headers).response()

    async def database(request: Request, error: Exception) -> JSONResponse:
        request.app.state.services.metrics.storage_failures.inc()
        return storage_failed("use its database", error).response()

    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return ApiError(500, "internal_error", "the gateway failed; its log says why").response()

    app.add_exception_handler(ApiError, api)
    app.add_exception_handler(ImagegenError, fleet)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(sqlite3.Error, database)
    app.add_exception_handler(Exception, unexpected)


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what a path's OpenAPI entry says of its errors."""
    return {status: {"model": ErrorBody, "description": _DESCRIPTIONS[status]} for status in statuses}


_DESCRIPTIONS = {
    400: "The body can't be read.",
    401: "No key, or one that is unknown or revoked.",
    403: "The key may not ask for this.",
    404: "There is no such thing, or it is another key's.",
    409: "It has ended otherwise.",
    413: "The body is too long.",
    422: "A field is missing, unknown or wrong; `param` names it.",
    429: "Too many requests; see Retry-After.",
    500: "The model, or the gateway, failed.",
    503: "No worker is there, or the queue is full; see Retry-After.",
    504: "`timeout_seconds` went by.",
}
