"""The ASGI application: routes, error handlers and middleware."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from imagegen_gateway import errors, page
from imagegen_gateway.admission import AdmissionMiddleware
from imagegen_gateway.body_limit import BodyLimit
from imagegen_gateway.config import Settings
from imagegen_gateway.connection_limits import ConnectionLimiter
from imagegen_gateway.metrics import MetricsMiddleware
from imagegen_gateway.response_headers import EXPOSED, ResponseHeaders, TrailingSlash
from imagegen_gateway.routes import files, images, jobs, models, operations
from imagegen_gateway.services import open_services

_DESCRIPTION = "Image generation on a fleet of GPUs: OpenAI's images API and durable jobs."


def make_app(settings: Settings, stopping: asyncio.Event) -> FastAPI:
    """Return the application; its lifespan opens the services. `stopping` is set when the shutdown begins."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_services(settings, stopping) as services:
            app.state.services = services
            yield

    app = FastAPI(
        title="imagegen gateway",
        description=_DESCRIPTION,
        version=version("imagegen-fleet"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False},
    )
    errors.install(app)
    for router in (images.router, jobs.router, models.router, files.router, operations.router):
        app.include_router(router)
    page.install(app, settings.worker_networks)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(AdmissionMiddleware, max_body_bytes=settings.max_body_bytes)
    app.state.connections = ()
    app.add_middleware(
        ConnectionLimiter, connections=lambda: app.state.connections, max_connections=settings.max_connections
    )
    app.add_middleware(ResponseHeaders)
    if settings.cors_origins:
        # Around all middleware that responds, so that pages can read every error.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            # Clients send headers of their own, such as x-stainless-*; only Authorization grants anything.
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=EXPOSED,
        )
    app.add_middleware(MetricsMiddleware, metrics=lambda: app.state.services.metrics)
    app.add_middleware(TrailingSlash)
    return app
