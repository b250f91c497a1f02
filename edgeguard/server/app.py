"""The HTTP face of a repository folder: read by anybody, written by whoever holds a publish token.

`GET /<environment>/head` answers with a strong ETag; a conditional request with `Prefer: wait=N` (RFC 7240)
is held until the head changes, a root is added, or N seconds have passed. Blobs and roots are immutable (RFC 8246).
`PUT /v1/publish` takes one signed envelope and accepts nothing that the roots of the folder do not vouch for.
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from edgeguard.server.publishing import Publisher, PublishRefused
from edgeguard.server.repository import Location, Repository, locate
from edgeguard.server.tokens import PublishTokens
from edgeguard.server.watch import HeadWatch

logger = logging.getLogger(__name__)

_BINARY: Final = "application/octet-stream"
_FOREVER: Final = "public, max-age=31536000, immutable"
_ASK_ALWAYS: Final = "no-cache"


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What a client may cost the server."""

    wait_s: float = 60.0
    """Longest time that a long poll is held."""
    waiters: int = 4096
    """Long polls held at once; one more is answered at once."""
    publish_bytes: int = 16 * 1024 * 1024
    """Largest envelope that is taken."""
    publish_s: float = 60.0
    """Time for the body of a publish request."""


class BundleServer:
    """The handlers, over one repository."""

    def __init__(
        self, repository: Repository, publisher: Publisher, tokens: PublishTokens, limits: ServerLimits
    ) -> None:
        self._repository = repository
        self._publisher = publisher
        self._tokens = tokens
        self._limits = limits
        self.watch = HeadWatch(repository, capacity=limits.waiters)

    async def health(self, _request: Request) -> Response:
        """200 while the folder can be listed."""
        root = await asyncio.to_thread(self._repository.newest_root)
        return _json({"status": "ok", "root_version": root, "waiting": self.watch.waiting})

    async def file(self, request: Request) -> Response:
        """One file of the layout; 404 for every other spelling."""
        raw = request.scope.get("raw_path") or request.scope["path"].encode()
        location = locate(raw.decode("latin-1").removeprefix("/"))
        if location is None:
            return _problem(404, "not_found", "no such file")
        return await self._serve(request, location)

    async def _serve(self, request: Request, location: Location) -> Response:
        mark = self._repository.mark(location)
        data = await self._repository.read(location)
        asked = request.headers.get("if-none-match")
        wait_s = (
            0.0
            if location.immutable
            else _wanted_wait(request.headers.getlist("prefer"), self._limits.wait_s)
        )
        deadline = asyncio.get_running_loop().time() + wait_s
        while data is not None and asked is not None and _matches(asked, _etag(data)):
            left_s = deadline - asyncio.get_running_loop().time()
            newest = mark.newest_root if mark else 0
            woken = left_s > 0 and await self.watch.wait(location, mark, left_s)
            if woken:
                mark = self._repository.mark(location)
                data = await self._repository.read(location)
            # A new root ends the waiting as well: who asked looks for it next.
            if not woken or (mark and mark.newest_root != newest and data and _matches(asked, _etag(data))):
                return Response(status_code=304, headers=_headers(location, data or b"", wait_s))
        if data is None:
            return _problem(404, "not_found", "no such file")
        return Response(data, media_type=_BINARY, headers=_headers(location, data, wait_s))

    async def publish(self, request: Request) -> Response:
        """Takes one envelope: 201 when it is new, 200 when it is there already."""
        if not self._tokens:
            return _problem(403, "publishing_off", "this server has no publish tokens")
        if not self._tokens.accepts(request.headers.get("authorization")):
            return _problem(
                401,
                "unauthorized",
                "a valid publish token is needed",
                {"WWW-Authenticate": 'Bearer realm="publish"'},
            )
        try:
            data = await self._body(request)
            published = await self._publisher.publish(data)
        except PublishRefused as refused:
            return _problem(refused.status, refused.code, refused.detail)
        self.watch.poke(published.location)
        logger.info("published %s (%s)", published.location.path, published.identity)
        return _json(
            {
                "path": published.location.path,
                "role": published.role,
                "version": published.version,
                "identity": published.identity,
                "created": published.created,
            },
            201 if published.created else 200,
        )

    async def _body(self, request: Request) -> bytes:
        cap = self._limits.publish_bytes
        too_big = PublishRefused(413, "too_big", f"an envelope may have {cap} bytes")
        announced = request.headers.get("content-length", "0")
        if not (announced.isascii() and announced.isdigit()) or len(announced) > 15 or int(announced) > cap:
            raise too_big
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.publish_s):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > cap:
                        raise too_big
        except TimeoutError:
            raise PublishRefused(
                408, "timeout", f"the body took longer than {self._limits.publish_s:g} s"
            ) from None
        except ClientDisconnect:
            raise PublishRefused(400, "truncated", "the connection broke off") from None
        return bytes(body)


def create_app(
    repository: Repository,
    tokens: PublishTokens,
    *,
    publisher: Publisher | None = None,
    limits: ServerLimits | None = None,
    now: Callable[[], float] | None = None,
) -> Starlette:
    """The ASGI application over `repository`. `app.state.server` is its BundleServer."""
    if publisher is None:
        publisher = Publisher(repository) if now is None else Publisher(repository, now=now)
    server = BundleServer(repository, publisher, tokens, limits or ServerLimits())
    app = Starlette(
        routes=[
            Route("/healthz", server.health, methods=["GET"]),
            Route("/v1/publish", server.publish, methods=["PUT"]),
            Route("/{path:path}", server.file, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _crash},
    )
    app.router.redirect_slashes = False
    app.state.server = server
    return app


async def _http_error(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = error.headers if isinstance(error, HTTPException) else None
    return _problem(
        status, HTTPStatus(status).phrase.lower().replace(" ", "_"), HTTPStatus(status).phrase, headers
    )


async def _crash(_request: Request, _error: Exception) -> Response:
    return _problem(500, "internal_error", "the server failed; its log says why")


def _etag(data: bytes) -> str:
    return f'"{hashlib.sha256(data).hexdigest()}"'


def _matches(if_none_match: str, etag: str) -> bool:
    """Weak comparison with each listed validator (RFC 9110, 13.1.2)."""
    if if_none_match.strip() == "*":
        return True
    return any(part.strip().removeprefix("W/") == etag for part in if_none_match.split(","))


def _wanted_wait(fields: list[str], cap_s: float) -> float:
    """Seconds of the first `wait` preference, at most `cap_s`; 0 when there is none that can be read."""
    for preference in ",".join(fields).split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == "wait":
            digits = value.strip().strip('"')
            return (
                min(cap_s, float(digits))
                if digits.isascii() and digits.isdigit() and len(digits) < 9
                else 0.0
            )
    return 0.0


def _headers(location: Location, data: bytes, wait_s: float) -> dict[str, str]:
    headers = {
        "ETag": _etag(data),
        "Cache-Control": _FOREVER if location.immutable else _ASK_ALWAYS,
        "X-Content-Type-Options": "nosniff",
    }
    if not location.immutable:
        headers["Vary"] = "Prefer"
    if wait_s > 0:
        headers["Preference-Applied"] = f"wait={wait_s:.0f}"
    return headers


def _json(value: Mapping[str, object], status: int = 200) -> Response:
    return Response(json.dumps(value) + "\n", status, {"Cache-Control": "no-store"}, "application/json")


def _problem(status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error in the form of RFC 9457."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
    }
    return Response(
        json.dumps(body) + "\n",
        status,
        {"Cache-Control": "no-store", **(headers or {})},
        "application/problem+json",
    )
