"""Errors in OpenAI's format: ``{"error": {"message", "type", "param", "code"}}``, all four keys always."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from ..engine.runner import EngineClosed, QueueFull, WaitedTooLong
from ..errors import CsmError, InputError, PromptTooLong

log = logging.getLogger("csm_hybrid.server")

LOGGED = web.RequestKey("logged", bool)  # the request's outcome is in the log


class ApiError(Exception):
    """An error for a client."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self._error = {"message": message, "type": kind, "param": param, "code": code}

    @property
    def code(self) -> str | None:
        """OpenAI's ``code``: what went wrong, for programs."""
        return self._error["code"]

    def body(self) -> dict[str, Any]:
        """The JSON that the client gets."""
        return {"error": self._error}

    def response(self) -> web.Response:
        """The HTTP answer."""
        return web.json_response(self.body(), status=self.status, headers=self.headers)


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A request that breaks a rule."""
    return ApiError(HTTPStatus.BAD_REQUEST, message, param=param, code=code)


def overloaded(message: str, code: str, retry_after: int) -> ApiError:
    """No room for the request now; ``retry_after`` in whole seconds."""
    headers = {"Retry-After": str(max(1, retry_after))}
    return ApiError(HTTPStatus.TOO_MANY_REQUESTS, message, kind="rate_limit_error", code=code, headers=headers)


def shutting_down() -> ApiError:
    """The server takes no new work."""
    message = "the server is shutting down"
    headers = {"Retry-After": "5"}
    status = HTTPStatus.SERVICE_UNAVAILABLE
    return ApiError(status, message, kind="server_error", code="shutting_down", headers=headers)


def _engine_error(error: Exception) -> ApiError:
    message = f"the speech failed: {error}"
    return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, message, kind="server_error", code="engine_error")


def _took_too_long(_: Exception) -> ApiError:
    message = "the request took longer than the server allows: send a shorter text"
    # Or OpenAI's clients would try again, and again for as long.
    headers = {"X-Should-Retry": "false"}
    status = HTTPStatus.SERVICE_UNAVAILABLE
    return ApiError(status, message, kind="server_error", code="request_timeout", headers=headers)


# The first class that fits counts, so a class stands before those that it comes from.
_TRANSLATIONS: tuple[tuple[type[Exception], Callable[[Exception], ApiError]], ...] = (
    (PromptTooLong, lambda error: invalid(str(error), "input", "string_above_max_length")),
    (InputError, lambda error: invalid(str(error), "input")),
    (EngineClosed, lambda _: shutting_down()),
    (CsmError, _engine_error),
    (asyncio.TimeoutError, _took_too_long),
)


def translate(error: Exception, retry_after: int = 1) -> ApiError:
    """An error as its client gets it; never a traceback. ``retry_after``: seconds, for an overload."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        return overloaded("all slots are busy and the queue is full: try again later", "queue_full", retry_after)
    if isinstance(error, WaitedTooLong):
        return overloaded("no slot became free in time: try again later", "queue_timeout", retry_after)
    if isinstance(error, web.HTTPException):
        return _from_http(error)
    translation = next((made for kind, made in _TRANSLATIONS if isinstance(error, kind)), None)
    if translation is not None:
        return translation(error)
    log.error("an unforeseen error", exc_info=error)
    message = "the server had an error while processing the request"
    return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, message, kind="server_error", code="internal_error")


def _from_http(error: web.HTTPException, request: web.Request | None = None) -> ApiError:
    codes = {404: "unknown_url", 405: "method_not_allowed", 413: "request_too_large"}
    headers = {name: value for name, value in error.headers.items() if name.lower() == "allow"}
    message = error.text or error.reason
    if request is not None and isinstance(error, web.HTTPNotFound):
        message = f"there is nothing at {_where(request)}: speech is made at POST /v1/audio/speech"
    elif request is not None and isinstance(error, web.HTTPMethodNotAllowed):
        message = f"there is no {_where(request)}, only {', '.join(sorted(error.allowed_methods))}"
    return ApiError(error.status, message, code=codes.get(error.status, "bad_request"), headers=headers)


@web.middleware
async def error_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error leaves as OpenAI's JSON, and is in the log unless it is the end of a speech, which has a line."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        answer = _from_http(error, request)
    except Exception as error:
        answer = translate(error)
    if not request.get(LOGGED):
        fields = {"request": _where(request), "status": answer.status, "error": str(answer)}
        log.info("refused", extra={"fields": fields})
    return answer.response()


def _where(request: web.Request) -> str:
    return f"{request.method} {request.rel_url.raw_path[:100]}"
