"""Who may ask: API keys, and web pages of other origins."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from http import HTTPStatus
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from .api_errors import ApiError

# What clients ask for before they have a key, or without ever sending one (Open WebUI lists models and voices so).
OPEN_PATHS = frozenset({"/health", "/ready", "/openapi.json", "/v1/audio/models", "/v1/audio/voices"})
_ALLOWED_METHODS = "GET, POST, OPTIONS"
_ALLOWED_HEADERS = "Authorization, Content-Type, X-Request-Id"  # of a page that does not say what it will send
_EXPOSED_HEADERS = "X-Request-Id, Retry-After, X-Should-Retry"
# A list of headers' names (RFC 9110, section 5.6.2).
_NAMES = re.compile(r"[\w!#$%&'*+.^`|~-]+(?:[ \t]*,[ \t]*[\w!#$%&'*+.^`|~-]+)*", re.ASCII)
_PREFLIGHT_SECONDS = "600"


# A browser's WebSocket can set no header but the list of subprotocols: OpenAI's clients offer this one, and beside it
# the key with a prefix.
SUBPROTOCOL = "realtime"
_KEY_SUBPROTOCOL = "openai-insecure-api-key."


def is_websocket(request: web.Request) -> bool:
    """Whether a request asks for a WebSocket."""
    return request.headers.get("Upgrade", "").lower() == "websocket"


def _subprotocols(request: web.Request) -> list[str]:
    """The subprotocols that a request for a WebSocket offers."""
    offered = ",".join(request.headers.getall("Sec-WebSocket-Protocol", ())) if is_websocket(request) else ""
    return [name.strip() for name in offered.split(",")]


def _given_key(request: web.Request) -> str:
    """The key that a request brings, "" when it brings none."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    keys = [token.strip()] if scheme.lower() == "bearer" else []
    keys += [s.removeprefix(_KEY_SUBPROTOCOL) for s in _subprotocols(request) if s.startswith(_KEY_SUBPROTOCOL)]
    return next(filter(None, keys), "")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()  # a header may hold any bytes


def authentication(keys: Sequence[str]) -> list[Middleware]:
    """A middleware that asks for one of ``keys``, as a bearer token or, of a WebSocket, also as a subprotocol; none
    when there are no keys.

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
        key = _given_key(request)
        if not key:
            how = "send it as Authorization: Bearer KEY"
            if is_websocket(request):
                how += f", or offer the subprotocols {SUBPROTOCOL} and {_KEY_SUBPROTOCOL}KEY"
            raise _unauthorised(f"you did not provide an API key: {how}", None)
        if not known(key):
            raise _unauthorised("the API key provided is not correct", "invalid_api_key")
        return await handler(request)

    return [middleware] if digests else []


def _unauthorised(message: str, code: str | None) -> ApiError:
    return ApiError(HTTPStatus.UNAUTHORIZED, message, code=code, headers={"WWW-Authenticate": "Bearer"})


def _forbidden(origin: str) -> ApiError:
    return ApiError(HTTPStatus.FORBIDDEN, f"the origin {origin[:100]!r} is not allowed", code="origin_not_allowed")


def _host(origin: str) -> str | None:
    """The host that an origin's pages come from, None for one that is no URL."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


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
            response.headers["Access-Control-Expose-Headers"] = _EXPOSED_HEADERS
        if self._origins:
            response.headers.add("Vary", "Origin")

    def middleware(self) -> Middleware:
        """Answers preflight requests, and keeps pages of other origins from opening a WebSocket.

        A browser would let them: its cross-origin rules do not cover WebSockets.
        """

        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            origin = request.headers.get("Origin")
            if origin is None:
                return await handler(request)
            if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
                return self._preflight(origin, request.headers.get("Access-Control-Request-Headers", ""))
            if is_websocket(request) and not self.allows(origin) and _host(origin) != request.host:
                raise _forbidden(origin)
            return await handler(request)

        return middleware

    def _preflight(self, origin: str, headers: str) -> web.Response:
        """A page of an origin that is allowed may send any header: OpenAI's clients bring a dozen of their own."""
        if not self.allows(origin):
            raise _forbidden(origin)
        return web.Response(
            status=HTTPStatus.NO_CONTENT,
            headers={
                "Access-Control-Allow-Methods": _ALLOWED_METHODS,
                "Access-Control-Allow-Headers": headers if _NAMES.fullmatch(headers) else _ALLOWED_HEADERS,
                "Access-Control-Max-Age": _PREFLIGHT_SECONDS,
                "Vary": "Access-Control-Request-Headers",
            },
        )
