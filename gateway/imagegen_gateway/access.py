"""Authentication: by API key or, without keys, by the loopback interface."""

import time
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.types import ASGIApp, Receive, Scope, Send

from imagegen_gateway.errors import ApiError
from imagegen_gateway.keys import ApiKey
from imagegen_gateway.services import Services
from imagegen_protocol.endpoints import is_loopback

_bearer = HTTPBearer(auto_error=False, description="An API key (`imagegen-gateway keys add`).")


def get_services(request: Request) -> Services:
    """Return the application's services."""
    services: Services = request.app.state.services
    return services


async def get_api_key(
    request: Request,
    services: Annotated[Services, Depends(get_services)],
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> ApiKey:
    """Return the API key of a request. Raises `ApiError` 401 and 403."""
    if not services.settings.keys_required:
        _check_local(request, services)
        return await services.api_keys.anonymous(time.time())
    return await _authenticate(services, credentials)


async def _authenticate(services: Services, credentials: HTTPAuthorizationCredentials | None) -> ApiKey:
    challenge = {"WWW-Authenticate": "Bearer"}
    if credentials is None:
        message = "the request has no API key; send the header Authorization: Bearer KEY"
        raise ApiError(401, "missing_api_key", message, headers=challenge)
    api_key = await services.api_keys.find(credentials.credentials)
    if api_key is None:
        services.metrics.refusals.labels(reason="key").inc()
        raise ApiError(401, "invalid_api_key", "this API key is unknown or revoked", headers=challenge)
    return api_key


class AuthenticationMiddleware:
    """Middleware that rejects unknown keys before the body is read; routes check the key after that."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reject a POST request with an unknown key; pass other connections on."""
        if scope["type"] == "http" and scope["method"] == "POST":
            request = Request(scope)
            try:
                await _authenticate(get_services(request), await _bearer(request))
            except ApiError as error:
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _check_local(request: Request, services: Services) -> None:
    """Raise `ApiError` 403 for requests of other sites' pages, which a local browser could send."""
    host = request.headers.get("host", "")
    settings = services.settings
    name = urlsplit(f"//{host}").hostname or ""
    if not is_loopback(name) and name != urlsplit(settings.public_url or "").hostname:
        message = f"Host: expected this machine or the host of --public-url (keys are off), got {host!r}"
        raise ApiError(403, "foreign_host", message)
    origin = request.headers.get("origin")
    if origin is None or urlsplit(origin).netloc == host or {origin, "*"} & {*settings.cors_origins}:
        return
    raise ApiError(403, "foreign_origin", f"pages of {origin} are not allowed; see --cors-origin")


def base_url(request: Request, services: Services) -> str:
    """Return the URL of this gateway as clients see it."""
    return services.settings.public_url or str(request.base_url).rstrip("/")


ServicesDep = Annotated[Services, Depends(get_services)]
ApiKeyDep = Annotated[ApiKey, Depends(get_api_key)]
