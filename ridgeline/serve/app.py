"""The FastAPI application: routes, and the order of what a request passes through.

Gate (id, key, errors, counts) -> CORS if asked for -> routing -> route
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from ridgeline.serve.admin import routes as admin
from ridgeline.serve.errors import ApiError
from ridgeline.serve.gate import ROUTE, Gate
from ridgeline.serve.metrics import Metrics
from ridgeline.serve.openai.chat import chat_completions
from ridgeline.serve.openai.completions import completions
from ridgeline.serve.openai.models import detokenize, get_model, list_models, tokenize
from ridgeline.serve.options import ServerOptions
from ridgeline.serve.page import page
from ridgeline.serve.service import Service

if TYPE_CHECKING:
    from ridgeline.engine.async_engine import AsyncEngine

Route = Callable[[Service, Request], Awaitable[Response]]

ROUTES: tuple[tuple[str, str, Route], ...] = (
    ("POST", "/v1/chat/completions", chat_completions),
    ("POST", "/v1/completions", completions),
    ("GET", "/v1/models", list_models),
    ("GET", "/v1/models/{model:path}", get_model),
    ("GET", "/v1/engine/config", admin.engine_config),
    ("POST", "/tokenize", tokenize),
    ("POST", "/detokenize", detokenize),
    ("GET", "/health", admin.health),
    ("GET", "/ready", admin.ready),
    ("GET", "/version", admin.version),
    ("GET", "/metrics", admin.metrics),
    ("GET", "/", page),
)


def create_app(engine: AsyncEngine | None, options: ServerOptions) -> FastAPI:
    """The application. `engine` None: still loading; `app.state.service.attach(engine)` when it is there."""
    service = Service(options, Metrics())
    app = FastAPI(title="Ridgeline", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.service = service
    for method, path, route in ROUTES:
        app.add_route(path, _endpoint(service, path, route), methods=[method])
    app.add_exception_handler(HTTPException, _http_error)
    if options.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(options.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
        )
    app.add_middleware(Gate, service=service)
    if engine is not None:
        service.attach(engine)
    return app


def _endpoint(service: Service, path: str, route: Route) -> Callable[[Request], Awaitable[Response]]:
    @functools.wraps(route)
    async def endpoint(request: Request) -> Response:
        request.scope["state"][ROUTE] = path
        return await route(service, request)

    return endpoint


async def _http_error(request: Request, error: Exception) -> Response:
    """What routing itself refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    messages = {
        404: "there is nothing at this path",
        405: f"{request.method} is not allowed at this path"[:80],
    }
    codes = {404: "not_found", 405: "method_not_allowed"}
    message = messages.get(error.status_code, "the request was refused")
    code = codes.get(error.status_code)
    return ApiError(error.status_code, message, code=code, headers=dict(error.headers or {})).response()
