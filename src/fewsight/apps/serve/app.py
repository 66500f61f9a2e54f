"""The ASGI application: the page, and the API behind it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import fewsight
from fewsight.apps.serve.guard import CLIENT_CLOSED, Guard, refusal_response
from fewsight.apps.serve.limits import Limits, RefusedError
from fewsight.apps.serve.routes import add_routes
from fewsight.apps.serve.service import Service
from fewsight.apps.serve.uploads import drain
from fewsight.inference.model import Model
from fewsight.inference.prediction_files import valid_text

PAGES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/docs": ("docs.html", "text/html"),
    "/docs.js": ("docs.js", "text/javascript"),
}


def build_app(model: Model, limits: Limits | None = None, token: str | None = None) -> FastAPI:
    """Build the service as an ASGI application; loads the model's weights into memory.

    Args:
        token: what requests must carry; None: only requests from this machine are allowed, see `Guard`.

    Returns:
        The application; `app.state.service` is its `Service`, which the end of the lifespan closes.
    """
    model.load()
    service = Service(model, limits or Limits())

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        service.is_stopping = True
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="fewsight",
        version=fewsight.__version__,
        description=f"The run {valid_text(model.path.resolve().name)}: takes images, returns class probabilities.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        exception_handlers={
            RefusedError: _refuse,
            HTTPException: _refuse_http,
            RequestValidationError: _refuse_values,
            ClientDisconnect: _forget,
        },
    )
    app.state.service = service
    app.add_middleware(Guard, token=token, counters=service.counters)
    if token is not None:
        _describe_token(app)
    add_routes(app)
    for path, (name, kind) in PAGES.items():
        _add_page(app, path, (resources.files("fewsight.apps.serve") / "page" / name).read_bytes(), kind)
    return app


async def _refuse(_request: Request, error: RefusedError) -> JSONResponse:
    return refusal_response(error)


async def _refuse_http(_request: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)


async def _refuse_values(request: Request, error: RequestValidationError) -> JSONResponse:
    await drain(request.headers, request.receive)
    problem = error.errors()[0]
    return refusal_response(RefusedError(422, f"{problem['loc'][-1]}: {problem['msg']}", close=True))


async def _forget(_request: Request, _error: ClientDisconnect) -> Response:
    return Response(status_code=CLIENT_CLOSED)  # never received


def _add_page(app: FastAPI, path: str, content: bytes, kind: str) -> None:
    @app.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        return Response(content, media_type=kind)


def _describe_token(app: FastAPI) -> None:
    """Declare the token in the OpenAPI description, so that generated clients send one."""
    describe_without_token = app.openapi

    def describe() -> dict[str, Any]:
        description = describe_without_token()
        description.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, operations in description["paths"].items():
            if path != "/healthz":
                for operation in operations.values():
                    operation["security"] = [{"token": []}]
        return description

    app.openapi = describe  # type: ignore[method-assign]
