"""Error responses in the format of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`."""

import logging
import math
import reprlib
import sqlite3
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from imagegen_common.logs import log
from imagegen_gateway.response_headers import REQUEST_ID, get_request_id
from imagegen_protocol import ImagegenError
from imagegen_protocol.parameters import http_field

_log = logging.getLogger("imagegen.gateway")


class ErrorObject(BaseModel):
    """An error."""

    model_config = ConfigDict(extra="forbid")

    message: str
    """Explanation for people."""
    type: str
    """Category of the error, as in OpenAI's API."""
    param: str | None
    """Name of the invalid request field; null for errors of other kinds."""
    code: str | None
    """Stable code for programs."""


class ErrorBody(BaseModel):
    """The body of every error response."""

    model_config = ConfigDict(extra="forbid")

    error: ErrorObject


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 100
STORAGE_FAILED = "storage_failed"
_TYPES = {403: "permission_error", 429: "rate_limit_error", 401: "authentication_error"}


MAX_WAIT_SECONDS = 300.0
"""Maximum delay until a retry, whatever the fleet states."""
MAX_MESSAGE = 2000
"""Maximum number of characters of an error message; longer ones, such as of a worker, are shortened."""
MAX_PARAM = 128
"""Maximum number of characters of a field's name in an error."""


class ApiError(HTTPException):
    """An error response. `retry_after` is in seconds; `final` marks errors for which a retry is useless.

    An `HTTPException`, as FastAPI turns other exceptions during the reading of a body into status 400.
    """

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
        fields = dict(headers or {})
        if retry_after is not None:
            fields["Retry-After"] = str(math.ceil(bounded_wait(retry_after)))
        if final:
            # OpenAI's clients retry after any other 5xx response.
            fields["x-should-retry"] = "false"
        self.status = status
        self.code = code
        self.message = _shorten(message, MAX_MESSAGE)
        self.param = None if param is None else _shorten(param, MAX_PARAM)
        super().__init__(status, self.message, fields)

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        """Return the body as a JSON object."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the response."""
        return JSONResponse(self.body(), self.status, self.headers)


def bounded_wait(seconds: float) -> float:
    """Return a delay within 1 and `MAX_WAIT_SECONDS`, also for one that is not finite."""
    return max(1.0, min(seconds, MAX_WAIT_SECONDS)) if math.isfinite(seconds) else MAX_WAIT_SECONDS


_STATUS: dict[str, tuple[int, float | None, bool]] = {
    "invalid_request": (400, None, False),
    "out_of_memory": (400, None, False),
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
"""Status, default Retry-After in seconds, and whether a retry is useless, by error code of the fleet."""


def from_imagegen_error(error: ImagegenError) -> ApiError:
    """Return the response for an error of the fleet, with field names of the HTTP API."""
    status, retry_after, final = _STATUS.get(error.code, (500, None, True))
    wait = error.retry_after_seconds if error.retry_after_seconds is not None else retry_after
    param = None
    message = error.message
    if error.code == "invalid_request":
        name, colon, rest = message.partition(":")
        if colon and name.isidentifier():
            param = http_field(name)
            message = f"{param}:{rest}"
    if error.code == "model_not_found":
        param = "model"
    return ApiError(status, error.code, message, param=param, retry_after=wait, final=final)


def not_found(kind: str, name: str) -> ApiError:
    """Return the response for a resource that does not exist or belongs to another key."""
    return ApiError(404, f"{kind}_not_found", f"the {kind} {name!r} does not exist")


def storage_failed(action: str, error: Exception) -> ApiError:
    """Log a failure of the database or the image store, and return the response."""
    log(_log, logging.ERROR, "storage failed", action=action, error=f"{type(error).__name__}: {error}")
    return ApiError(503, STORAGE_FAILED, f"the gateway can't {action} now; retry later", retry_after=10)


def from_validation_error(error: RequestValidationError) -> ApiError:
    """Return the response for a request that violates the schema: the field, the rule and the value."""
    first = error.errors()[0]
    location = [part for part in first["loc"] if part not in ("body", "query", "header", "path")]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", first["msg"])
        return ApiError(400, "invalid_json", f"the body is not valid JSON: {reason}")
    param = ".".join(str(part) for part in location) or None
    if first["type"] == "missing":
        return ApiError(400, "missing_field", f"{param or 'body'}: required, but missing", param=param)
    if first["type"] == "extra_forbidden":
        return ApiError(
            400,
            "unknown_field",
            f"{param}: unknown field; {_UNKNOWN}",
            param=param,
        )
    rule = first["msg"].removeprefix("Value error, ")
    value = "" if first["type"] == "value_error" else f", got {_show(first.get('input'))}"
    return ApiError(400, "invalid_value", f"{param or 'body'}: {rule[0].lower()}{rule[1:]}{value}", param=param)


def _show(value: Any) -> str:
    """Return the start of a value as text; the work is bounded for any value."""
    text = f"{len(value)} bytes" if isinstance(value, bytes) else _REPR.repr(value)
    return _shorten(text.encode("ascii", "backslashreplace").decode(), 60)


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


_UNKNOWN = "see /openapi.json; further parameters of the model's pipeline belong in `extra`"
_HTTP_CODES = {
    400: ("bad_request", "the request can't be parsed"),
    404: ("not_found", "this path does not exist; see /openapi.json"),
    405: ("method_not_allowed", "this path does not support the method; see /openapi.json"),
    408: ("too_slow", "the body took too long to arrive"),
    413: ("too_large", "the body exceeds the maximum length of this gateway (--max-body-bytes)"),
}


def to_api_error(error: Exception) -> ApiError:
    """Return the response for any exception of the application."""
    match error:
        case ApiError():
            return error
        case ImagegenError():
            return from_imagegen_error(error)
        case RequestValidationError():
            return from_validation_error(error)
        case HTTPException():
            code, message = _HTTP_CODES.get(error.status_code, ("http_error", str(error.detail)))
            if error.status_code == 400:
                message = f"{message}: {error.detail}"
            return ApiError(error.status_code, code, message, headers=error.headers)
        case sqlite3.Error():
            return storage_failed("access its database", error)
        case _:
            return ApiError(500, "internal_error", "internal error of the gateway; see its log")


def install(app: FastAPI) -> None:
    """Add a handler that turns every exception into an error object."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        api_error = to_api_error(error)
        if api_error.code == STORAGE_FAILED:
            request.app.state.services.metrics.storage_failures.inc()
        response = api_error.response()
        # Starlette sends the response to an unexpected exception past all middleware.
        response.headers[REQUEST_ID] = get_request_id(request.scope)
        return response

    for kind in (ApiError, ImagegenError, RequestValidationError, HTTPException, sqlite3.Error, Exception):
        app.add_exception_handler(kind, handle)


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of a route's error responses."""
    # Without a default, FastAPI would add status 422 with a body of its own.
    descriptions: dict[int | str, str] = {"default": "Another error."}
    descriptions |= {status: _DESCRIPTIONS[status] for status in statuses}
    return {status: {"model": ErrorBody, "description": text} for status, text in descriptions.items()}


_DESCRIPTIONS = {
    400: "The request can't be parsed, or a field is missing, unknown or invalid; `param` names it.",
    401: "The key is missing, unknown or revoked.",
    403: "The request exceeds the limits of the key, or its host or origin is not allowed.",
    404: "The resource does not exist, or belongs to another key.",
    413: "The body is too long.",
    422: "The Idempotency-Key was used with another body.",
    429: "The key has reached a rate or concurrency limit; see Retry-After.",
    500: "The model or the gateway failed.",
    503: "No worker is available, the queue is full, or the storage fails; see Retry-After.",
    504: "`timeout_seconds` has passed.",
}
