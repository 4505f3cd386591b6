"""Who asks: by key, or, where there are none, anybody on this machine."""

import time
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.types import ASGIApp, Receive, Scope, Send

from imagegen_gateway.errors import ApiError
from imagegen_gateway.keys import Caller
from imagegen_gateway.services import Services
from imagegen_protocol.endpoints import is_loopback

_bearer = HTTPBearer(auto_error=False, description="An API key (`imagegen-gateway keys add`).")


def get_services(request: Request) -> Services:
    """Return the application's services."""
    services: Services = request.app.state.services
    return services


async def get_caller(
    request: Request,
    services: Annotated[Services, Depends(get_services)],
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> Caller:
    """Return who asks. Raises `ApiError` 401 and 403."""
    if not services.settings.keys_needed:
        _check_local(request, services)
        return await services.keys.everybody(time.time())
    return await _find(services, credentials)


async def _find(services: Services, credentials: HTTPAuthorizationCredentials | None) -> Caller:
    challenge = {"WWW-Authenticate": "Bearer"}
    if credentials is None:
        message = "no API key was given; send it as: Authorization: Bearer KEY"
        raise ApiError(401, "missing_api_key", message, headers=challenge)
    caller = await services.keys.find(credentials.credentials)
    if caller is None:
        services.metrics.refused.labels(reason="key").inc()
        raise ApiError(401, "invalid_api_key", "this API key is unknown, or was revoked", headers=challenge)
    return caller


class KnownFirst:
    """Refuses strangers before their bodies are read; the paths' own look at the key comes after that."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        if scope["type"] == "http" and scope["method"] == "POST":
            request = Request(scope)
            try:
                await _find(get_services(request), await _bearer(request))
            except ApiError as error:
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _check_local(request: Request, services: Services) -> None:
    """Keep pages of other sites, which a browser on this machine shows, from using a gateway without keys."""
    host = request.headers.get("host", "")
    settings = services.settings
    name = urlsplit(f"//{host}").hostname or ""
    if not is_loopback(name) and name != urlsplit(settings.public_url or "").hostname:
        message = (
            f"{host!r} is not this machine (or the host of --public-url); without keys no other name is served"
        )
        raise ApiError(403, "foreign_host", message)
    origin = request.headers.get("origin")
    if origin is None or urlsplit(origin).netloc == host or {origin, "*"} & {*settings.cors_origins}:
        return
    raise ApiError(403, "foreign_origin", f"a page of {origin} may not ask here; --cors-origin lets it")


def base_url(request: Request, services: Services) -> str:
    """Return where this gateway is, as its callers see it."""
    return services.settings.public_url or str(request.base_url).rstrip("/")


TheServices = Annotated[Services, Depends(get_services)]
TheCaller = Annotated[Caller, Depends(get_caller)]
