"""The addresses of the server."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m3el_fast import __version__
from m3el_fast.errors import InputError
from m3el_fast.serve.errors import Refused, error_content, shown
from m3el_fast.serve.reference import reference_page
from m3el_fast.serve.schema import EntityOut, ErrorOut, HealthOut, LinkIn, LinksOut, form_schema
from m3el_fast.serve.service import Service

_PAGE = {
    "": ("index.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
}

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

_ABOUT = """Links mentions, with their sentences and pictures, to the entities of a knowledge base.

`POST /link` takes up to 64 mentions at a time; requests that wait are linked together. Whatever cannot be answered gets
`{"error": {"where", "expected", "got"}}`. At `/` there is a page to try it."""


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    reasons = {
        400: "The body is not JSON, or not a form.",
        404: "There is no such entity, or no such picture.",
        408: "The body came too slowly; the connection is closed.",
        413: "The body or a picture is too large.",
        415: "The body is neither JSON nor a form.",
        422: "Something in the request cannot be used.",
        503: "Too many requests are in hand, or the server is shutting down; `Retry-After` says when to ask again.",
        504: "It took too long.",
    }
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorOut"}}}
    return {status: {"content": content, "description": reasons[status]} for status in statuses}


class Json(Response):
    """JSON in ASCII, so that half a character in a name cannot break it; a number that is not finite is null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        try:
            text = json.dumps(content, allow_nan=False, separators=(",", ":"))
        except ValueError:
            text = json.dumps(_finite(content), separators=(",", ":"))
        return text.encode("ascii")


class Jpeg(Response):
    media_type = "image/jpeg"


class Headers:
    """Adds to every answer what keeps a browser from doing more with it than it should; HEAD is answered as GET is."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        if scope.get("method") == "HEAD":
            scope = {**scope, "method": "GET"}  # the server, which keeps its own, leaves the body out
        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def create_app(service: Service) -> FastAPI:
    """The application; it starts and ends the service's thread."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watch = asyncio.ensure_future(service.watch_index()) if service.watch else None
        service.start()
        yield
        if watch is not None:
            watch.cancel()
        await run_in_threadpool(service.close)

    app = FastAPI(
        title="m3el_fast", version=__version__, description=_ABOUT, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    app.add_middleware(Headers)
    _add_refusals(app)
    _add_api(app, service)
    _add_pages(app)
    return app


def _add_api(app: FastAPI, service: Service) -> None:
    request_body = {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/LinkIn"}},
            "multipart/form-data": {"schema": form_schema()},
        },
    }

    @app.post(
        "/link",
        summary="Link mentions",
        response_model=LinksOut,
        responses=_errors(400, 408, 413, 415, 422, 503, 504),
        openapi_extra={"requestBody": request_body},
    )
    async def link(request: Request) -> Response:
        """The k best entities of each mention, best first: id, name, score, and the scores that it is made of.

        A form is one mention, with its picture as a file; JSON is up to 64 mentions."""
        links = await service.link(request)
        return Json({"links": links, "entities": [one.entity for one in links]})

    @app.get("/entities/{id:path}/image", summary="An entity's picture", responses=_errors(404), response_class=Jpeg)
    async def image(id: str) -> Response:
        """At most 320 x 320 pixels, where the server has a KB and the entity a picture."""
        content = await run_in_threadpool(service.entities.picture, id)
        return Jpeg(content, headers={"Cache-Control": "public, max-age=3600"})

    @app.get("/entities/{id:path}", summary="An entity", response_model=EntityOut, responses=_errors(404))
    async def entity(id: str) -> Response:
        """Its name and, where the server has a KB, its texts and the address of its picture."""
        return Json(await run_in_threadpool(service.entities.describe, service.index.linker.index, id))

    @app.get(
        "/healthz",
        summary="How the server is",
        response_model=HealthOut,
        responses={503: {"model": HealthOut, "description": "Not ready."}},
    )
    async def healthz() -> Response:
        """Model, index and version; `index.problem` says why a newer index could not be taken into use."""
        health = service.health() | {"version": app.version}
        return Json(health, 200 if health["ready"] else 503)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            template = "#/components/schemas/{model}"
            models = models_json_schema([(LinkIn, "validation"), (ErrorOut, "serialization")], ref_template=template)[
                1
            ]["$defs"]
            schema["components"]["schemas"] |= models
            _drop_validation_errors(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _drop_validation_errors(schema: dict[str, Any]) -> None:
    """FastAPI says of every address with a parameter that it may be refused in a form of FastAPI's own. None is."""
    forms = {name: f"#/components/schemas/{name}" for name in ("HTTPValidationError", "ValidationError")}
    for name in forms:
        schema["components"]["schemas"].pop(name, None)
    for operations in schema["paths"].values():
        for operation in operations.values():
            answer = operation["responses"].get("422", {}).get("content", {}).get("application/json", {})
            if answer.get("schema", {}).get("$ref") in forms.values():
                del operation["responses"]["422"]


def _add_pages(app: FastAPI) -> None:
    def add(path: str, content: bytes, media_type: str) -> None:
        async def page() -> Response:
            return Response(content, media_type=media_type)

        app.add_api_route(path, page, include_in_schema=False)

    for path, (name, media_type) in _PAGE.items():
        add(f"/{path}", files("m3el_fast.serve").joinpath("page", name).read_bytes(), media_type)
    add("/docs", reference_page(app.openapi()).encode(), "text/html")


def _add_refusals(app: FastAPI) -> None:
    def refusal(status: int, error: InputError, headers: Mapping[str, str] | None = None) -> Response:
        return Json(error_content(error.where, error.expected, error.got), status, dict(headers or {}))

    @app.exception_handler(InputError)
    async def input_error(request: Request, error: InputError) -> Response:
        if isinstance(error, Refused):
            return refusal(error.status, error, error.headers)
        return refusal(422, error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            return refusal(405, InputError("method", allowed, request.method), error.headers)
        known = "an address of this server, as /docs lists them"
        if error.status_code == 404:
            return refusal(404, InputError("address", known, shown(request.url.path)))
        return refusal(
            error.status_code, InputError("request", "one that can be answered", error.detail), error.headers
        )

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(Exception)
    async def failure(request: Request, error: Exception) -> Response:
        return refusal(500, InputError("server", "no failure", "one, which is in its log"))
