"""POST /v1/audio/speech."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import Coroutine
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

from aiohttp import web

from ..audio.formats import STREAMS
from ..engine.speech_task import Usage
from .api_errors import LOGGED, ApiError, invalid, translate
from .audio_stream import encoded
from .request_log import Record
from .request_schema import SpeechRequest, parse, speech_request
from .state import REQUEST_ID, SERVER, Server
from .synthesis import Synthesis
from .timing import Stalled, let_go, patiently, timeout


async def create_speech(request: web.Request) -> web.StreamResponse:
    """Speaks a text: plain bytes or server-sent events, from the first frame on."""
    server = request.app[SERVER]
    record = Record(request[REQUEST_ID])
    request[LOGGED] = True
    reply = _Reply(request, server.settings.stall_timeout)
    try:
        async with timeout(server.settings.request_timeout):
            server.enter(record)
            body = parse(await _body(request, server), server.body_model)
            how = speech_request(body, server.voices, server.settings.history)
            record.voice, record.format, record.characters = how.voice, how.response_format, len(body.input)
            await _speak(server, body.input, how, record, reply)
    except asyncio.CancelledError:
        record.outcome = "interrupted" if server.ending else "client_left"
        raise
    except Stalled:
        record.outcome = "stalled"
        reply.cut(at_once=True)
    except ConnectionError:
        record.outcome = "client_left"
    except Exception as error:
        answer = translate(error, server.model.runner.retry_after)
        record.outcome, record.error = answer.code or "error", str(answer)
        if not reply.begun:
            raise answer from error
        await reply.break_off(answer)
    finally:
        server.leave(record)
    return reply.response


async def _body(request: web.Request, server: Server) -> bytes:
    if request.content_type != "application/json":
        raise ApiError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"the content type must be application/json, not {request.content_type}",
            code="unsupported_media_type",
        )
    try:
        async with timeout(server.settings.body_timeout):
            return await request.read()
    except asyncio.TimeoutError as error:
        raise ApiError(HTTPStatus.REQUEST_TIMEOUT, "the body took too long to arrive", code="body_timeout") from error
    except web.RequestPayloadError as error:
        raise invalid(f"the body cannot be read: {error}", code="invalid_body") from error


async def _speak(server: Server, text: str, how: SpeechRequest, record: Record, reply: _Reply) -> None:
    speech = Synthesis(server.model, how.options, server.admission)
    record.usage = speech.usage
    samples = speech.samples(await speech.whole(text))
    async with aclosing(samples), aclosing(encoded(server, samples, how, record)) as chunks:
        # Whatever goes wrong before the first sound is answered with a status.
        first = await anext(chunks)
        await reply.begin(how)
        await reply.send(first)
        async for chunk in chunks:
            await reply.send(chunk)
    await reply.end(usage_body(speech.usage))
    record.outcome = "ok" if record.audio_seconds else "empty"


class _Reply:
    """The answer as a stream: plain bytes, or server-sent events with the bytes in base64."""

    def __init__(self, request: web.Request, patience: float) -> None:
        self._request = request
        self._patience = patience
        self._sse = False
        self.response = web.StreamResponse()

    @property
    def begun(self) -> bool:
        """Whether the status has been sent."""
        return self.response.prepared

    async def begin(self, how: SpeechRequest) -> None:
        self._sse = how.sse
        self.response.headers.update(
            {
                "Content-Type": "text/event-stream" if how.sse else STREAMS[how.response_format].media_type,
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",  # or nginx would buffer it
            }
        )
        await self.response.prepare(self._request)

    async def send(self, data: bytes) -> None:
        """Sends audio. Raises ConnectionError when the client has gone, Stalled when it takes nothing."""
        if self._sse:
            await self._event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
        else:
            await self._patiently(self.response.write(data))

    async def end(self, usage: dict[str, int]) -> None:
        if self._sse:
            await self._event({"type": "speech.audio.done", "usage": usage})
        await self._patiently(self.response.write_eof())

    async def break_off(self, error: ApiError) -> None:
        """Ends a reply in the middle. The status has long been sent, so the connection is cut: nobody is to take the
        part for the whole. Server-sent events first say why.
        """
        if self._sse:
            with contextlib.suppress(ConnectionError):
                await self._event({"type": "error", **error.body()})
        self.cut()

    def cut(self, *, at_once: bool = False) -> None:
        """Closes the connection, after what has been sent or at once."""
        let_go(self._request.transport, 0.0 if at_once else self._patience)

    async def _event(self, event: dict[str, Any]) -> None:
        await self._patiently(self.response.write(f"data: {json.dumps(event)}\n\n".encode()))

    async def _patiently(self, writing: Coroutine[Any, Any, None]) -> None:
        await patiently(writing, self._patience)


def usage_body(usage: Usage) -> dict[str, int]:
    """Tokens: of text in, frames of audio out."""
    text, audio = usage.text_tokens, usage.frames
    return {"input_tokens": text, "output_tokens": audio, "total_tokens": text + audio}
