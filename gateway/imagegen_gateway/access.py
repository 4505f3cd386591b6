"""Authentication: by API key or, without keys, by the loopback interface."""

import re
import time
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from imagegen_gateway.errors import ApiError
from imagegen_gateway.keys import ApiKey
from imagegen_gateway.services import Services
from imagegen_protocol.endpoints import is_loopback

_bearer = HTTPBearer(auto_error=False, description="An API key (`imagegen-gateway keys add`).")

_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
"""A valid Host header: it becomes a part of URLs, which jobs store."""

ADMITTED = "admission"
"""Entry of an ASGI scope's state: the `Admission` of a request with a body."""


def get_services(request: Request) -> Services:
    """Return the application's services."""
    services: Services = request.app.state.services
    return services


async def get_api_key(
    request: Request,
    services: Annotated[Services, Depends(get_services)],
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> ApiKey:
    """Return the API key of a request. Raises `ApiError` 400, 401 and 403."""
    if (admission := request.scope["state"].get(ADMITTED)) is not None:
        admitted: ApiKey = admission.api_key
        return admitted
    return await _authenticate(request, services, credentials)


async def authenticate(request: Request, services: Services) -> ApiKey:
    """Return the API key of a request that has no route yet. Raises `ApiError` 400, 401 and 403."""
    return await _authenticate(request, services, await _bearer(request))


async def _authenticate(
    request: Request, services: Services, credentials: HTTPAuthorizationCredentials | None
) -> ApiKey:
    if not _HOST.fullmatch(request.headers.get("host", "localhost")):
        raise ApiError(400, "bad_request", "Host: expected a host name or an IP address, and a port")
    if not services.settings.keys_required:
        _check_local(request, services)
        return await services.api_keys.anonymous(time.time())
    challenge = {"WWW-Authenticate": "Bearer"}
    if credentials is None:
        message = "the request has no API key; send the header Authorization: Bearer KEY"
        raise ApiError(401, "missing_api_key", message, headers=challenge)
    api_key = await services.api_keys.find(credentials.credentials)
    if api_key is None:
        services.metrics.refusals.labels(reason="key").inc()
        raise ApiError(401, "invalid_api_key", "this API key is unknown or revoked", headers=challenge)
    return api_key


def _check_local(request: Request, services: Services) -> None:
    """Raise `ApiError` 403 for requests that a page of another site could send from a local browser."""
    host = request.headers.get("host", "")
    settings = services.settings
    name = _split(f"//{host}").hostname or ""
    if not is_loopback(name) and name != urlsplit(settings.public_url or "").hostname:
        message = f"Host: expected this machine or the host of --public-url (keys are off), got {host!r}"
        raise ApiError(403, "foreign_host", message)
    origin = request.headers.get("origin")
    own = (f"http://{host}", f"https://{host}")
    if origin is None or origin in own or {origin, "*"} & {*settings.cors_origins}:
        return
    raise ApiError(403, "foreign_origin", f"pages of {origin!r} are not allowed; see --cors-origin")


def _split(url: str) -> SplitResult:
    """Return the parts of a URL from a header; empty parts for one that can't be parsed."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def base_url(request: Request, services: Services) -> str:
    """Return the URL of this gateway as clients see it."""
    return services.settings.public_url or str(request.base_url).rstrip("/")


ServicesDep = Annotated[Services, Depends(get_services)]
ApiKeyDep = Annotated[ApiKey, Depends(get_api_key)]
