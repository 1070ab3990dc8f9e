"""The aiohttp application, and the life of the server from start to shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

from aiohttp import WSCloseCode, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

from ..errors import EngineError, OutputError
from . import info_routes
from .access import CrossOrigin, authentication
from .api_errors import error_middleware
from .metrics import Metrics
from .request_log import RequestLog
from .request_schema import body_model
from .settings import Settings
from .speech_route import create_speech
from .state import REQUEST_ID, SERVER, Server
from .synthesis import SpeechModel
from .voices import Voices, load_voices
from .websocket import stream_speech

log = logging.getLogger("csm_hybrid.server")

_ENCODERS = 2
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_QUOTED_LINE = re.compile(r":\s+b?['\"].*", re.DOTALL)


def create_app(model: SpeechModel, settings: Settings) -> web.Application:
    """The application. It owns ``model`` and closes it when it ends.

    Raises InputError for a folder of voices, or a voice in it, that cannot be used.
    """
    voices = Voices() if settings.voices is None else load_voices(model, settings.voices)
    cross_origin = CrossOrigin(settings.cors_origins)
    app = web.Application(
        client_max_size=settings.max_body_bytes,
        middlewares=[
            _identify,
            error_middleware,
            cross_origin.middleware(),
            *authentication(settings.api_keys),
        ],
    )
    app.on_response_prepare.append(cross_origin.on_prepare)
    app.on_response_prepare.append(_add_id)
    app.on_shutdown.append(_close_sockets)
    app.cleanup_ctx.append(_run(model, voices, settings))
    app.add_routes(
        [
            web.post("/v1/audio/speech", create_speech),
            web.get("/v1/audio/speech/stream", stream_speech),
            web.get("/v1/models", info_routes.list_models),
            web.get("/v1/models/{model:.+}", info_routes.get_model),
            web.get("/v1/audio/models", info_routes.list_audio_models),
            web.get("/v1/audio/voices", info_routes.list_voices),
            web.get("/health", info_routes.health),
            web.get("/ready", info_routes.readiness),
            web.get("/metrics", info_routes.metrics),
            web.get("/openapi.json", info_routes.openapi),
        ]
    )
    return app


def _run(model: SpeechModel, voices: Voices, settings: Settings) -> Callable[[web.Application], AsyncIterator[None]]:
    async def context(app: web.Application) -> AsyncIterator[None]:
        metrics = Metrics(model.runner)
        encoders = ThreadPoolExecutor(_ENCODERS, thread_name_prefix="encode")
        body = body_model(settings.max_input_chars, voices.names)
        app[SERVER] = server = Server(settings, model, voices, metrics, RequestLog(metrics), body, encoders)
        loop = asyncio.get_running_loop()

        def ended() -> None:
            with contextlib.suppress(RuntimeError):  # the event loop has closed
                loop.call_soon_threadsafe(server.engine_ended.set)

        model.runner.start(on_end=ended)
        yield
        await asyncio.to_thread(model.close)
        encoders.shutdown(wait=True)

    return context


@web.middleware
async def _identify(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Gives every request an id: the client's own X-Request-Id when it is a plain one."""
    given = request.headers.get("X-Request-Id", "")
    request[REQUEST_ID] = given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
    return await handler(request)


async def _add_id(request: web.Request, response: web.StreamResponse) -> None:
    if REQUEST_ID in request:
        response.headers["X-Request-Id"] = request[REQUEST_ID]


def make_runner(app: web.Application) -> web.AppRunner:
    """A runner for the application, in which a handler is cancelled as soon as its client has left."""
    server_log = logging.getLogger("csm_hybrid.server.http")
    server_log.addFilter(_quieten)
    # It warns of unknown subprotocols by their names, one of which is a key.
    logging.getLogger("aiohttp.websocket").setLevel(logging.ERROR)
    return web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0, logger=server_log)


def _quieten(record: logging.LogRecord) -> bool:
    """aiohttp logs whatever is not HTTP on the wire as an error with a traceback: one line will do."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError):
        record.levelno, record.levelname = logging.INFO, "INFO"
        record.msg, record.args = "refused", ()
        # Without the offending line, which may hold a key.
        what = " ".join(_QUOTED_LINE.sub("", error.message).split())
        record.fields = {"status": error.code, "error": what[:200]}
        record.exc_info = None
    return True


async def serve(model: SpeechModel, settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then lets what runs finish, for a bounded time, and refuses what comes.

    A second signal ends it at once. Raises OutputError when the address cannot be had, InputError for bad voices,
    EngineError when the engine ends by itself.
    """
    app = create_app(model, settings)
    runner = make_runner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port)
        try:
            await site.start()
        except (OSError, UnicodeError) as error:  # UnicodeError: a host that no name can be, such as a..b
            reason = getattr(error, "strerror", None) or error
            raise OutputError(
                f"cannot listen on {settings.host} port {settings.port}: {reason}; choose another --host or --port"
            ) from error
        for host, port, *_ in runner.addresses:
            log.info("listening on http://%s:%s", f"[{host}]" if ":" in host else host, port)
        await _until_stopped(app[SERVER])
    finally:
        await runner.cleanup()


async def _until_stopped(server: Server) -> None:
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signals.put_nowait, number)
    signalled = asyncio.create_task(signals.get())
    died = asyncio.create_task(server.engine_ended.wait())
    await asyncio.wait({signalled, died}, return_when="FIRST_COMPLETED")
    died.cancel()
    server.draining = True
    if not signalled.done():
        signalled.cancel()
        raise EngineError("the engine's thread has ended: the log says why; start the server anew")
    log.info("shutting down: %d speeches are under way", len(server.open))
    drained = asyncio.create_task(_drain(server))
    again = asyncio.create_task(signals.get())
    await asyncio.wait({drained, again}, timeout=server.settings.shutdown_timeout, return_when="FIRST_COMPLETED")
    for task in (drained, again):
        task.cancel()


async def _close_sockets(app: web.Application) -> None:
    """Closes all WebSockets at the same time, within a second: a client may have vanished."""
    server = app[SERVER]
    server.draining = server.ending = True

    async def close(socket: web.WebSocketResponse) -> None:
        with contextlib.suppress(ConnectionError, asyncio.TimeoutError):
            await asyncio.wait_for(socket.close(code=WSCloseCode.GOING_AWAY), timeout=1.0)

    await asyncio.gather(*(close(socket) for socket in list(server.sockets)))


async def _drain(server: Server) -> None:
    while server.open:
        await asyncio.sleep(0.05)
