"""Who may ask: API keys, and web pages of other origins."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from http import HTTPStatus
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from .errors import ApiError

# What clients look at before they have a key, or without ever sending one (Open WebUI lists models and voices so).
OPEN_PATHS = frozenset({"/health", "/ready", "/openapi.json", "/v1/audio/models", "/v1/audio/voices"})
_ALLOWED_METHODS = "GET, POST, OPTIONS"
_ALLOWED_HEADERS = "Authorization, Content-Type, OpenAI-Organization, OpenAI-Project, OpenAI-Beta"
_PREFLIGHT_SECONDS = "600"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def authentication(keys: Sequence[str]) -> list[Middleware]:
    """A middleware that asks for one of ``keys`` as a bearer token; none when there are no keys.

    All keys are compared, and by their digests, so that the time taken says nothing about them.
    """
    digests = [_digest(key) for key in keys]

    def known(token: str) -> bool:
        given = _digest(token)
        return sum([hmac.compare_digest(given, digest) for digest in digests]) > 0

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in OPEN_PATHS:
            return await handler(request)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise _unauthorised("you did not provide an API key: send it as Authorization: Bearer KEY", None)
        if not known(token.strip()):
            raise _unauthorised("the API key provided is not correct", "invalid_api_key")
        return await handler(request)

    return [middleware] if digests else []


def _unauthorised(message: str, code: str | None) -> ApiError:
    return ApiError(HTTPStatus.UNAUTHORIZED, message, code=code, headers={"WWW-Authenticate": "Bearer"})


def _forbidden(origin: str) -> ApiError:
    return ApiError(HTTPStatus.FORBIDDEN, f"the origin {origin[:100]!r} is not allowed", code="origin_not_allowed")


class CrossOrigin:
    """Lets web pages of the origins that are named use the server, and no others; "*" names all."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = frozenset(origin.rstrip("/") for origin in origins)

    def allows(self, origin: str) -> bool:
        """Whether pages of an origin may read answers."""
        return "*" in self._origins or origin in self._origins

    async def on_prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Adds the headers that let a page read the response."""
        origin = request.headers.get("Origin")
        if origin is not None and self.allows(origin):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = "X-Request-Id, Retry-After"
        if self._origins:
            response.headers.add("Vary", "Origin")

    def middleware(self) -> Middleware:
        """Answers preflight requests, and keeps pages of other origins from opening a WebSocket.

        A browser would not keep them: WebSockets know no cross-origin rules of their own.
        """

        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            origin = request.headers.get("Origin")
            if origin is None:
                return await handler(request)
            if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
                return self._preflight(origin)
            if request.headers.get("Upgrade", "").lower() == "websocket":
                same = urlsplit(origin).netloc == request.host
                if not same and not self.allows(origin):
                    raise _forbidden(origin)
            return await handler(request)

        return middleware

    def _preflight(self, origin: str) -> web.Response:
        if not self.allows(origin):
            raise _forbidden(origin)
        return web.Response(
            status=HTTPStatus.NO_CONTENT,
            headers={
                "Access-Control-Allow-Methods": _ALLOWED_METHODS,
                "Access-Control-Allow-Headers": _ALLOWED_HEADERS,
                "Access-Control-Max-Age": _PREFLIGHT_SECONDS,
            },
        )
