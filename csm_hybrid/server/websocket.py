"""WebSocket /v1/audio/speech/stream: text in parts, as a language model writes it; audio out as it is made.

The client sends JSON messages:
    {"type": "config", ...}          how to speak: the fields of POST /v1/audio/speech but for model, input and
                                     stream_format; pcm and the voice alloy by default; holds from the next turn on
    {"type": "text", "text": "..."}  more text, cut anywhere; each sentence is spoken as soon as it is whole
    {"type": "flush"}                the turn's text is complete: speak what is left. So it is when no text has come
                                     for --stall-timeout seconds, or for one when the server is shutting down. A turn
                                     without any text is done without audio
    {"type": "cancel"}               stop: what is being spoken and what waits is dropped
The server sends the audio of a turn as binary messages, one continuous encoding a turn, and JSON messages:
    {"type": "started", "turn", "format", "sample_rate"}    a turn's first audio follows
    {"type": "done", "turn", "usage", "audio_seconds"}      the turn has been spoken to its end, or to its longest
    {"type": "cancelled", "turn"}                           after cancel; no more audio comes of this turn, which is
                                                            the newest, or of one before it
    {"type": "error", "error": {...}, "turn"}               what was wrong; the connection stays open. It ended the
                                                            turn that it names; without one, a message was not taken
Turns are counted from 1; one begins with the first text, or the flush, after the end of the one before it or its
flush. So a done that crosses a cancel on its way is not mistaken for that of the next turn.

Where the server asks for a key, a client sends it as everywhere: Authorization: Bearer KEY. A browser cannot; it
offers two subprotocols, as OpenAI's realtime clients do:
    new WebSocket(url, ["realtime", "openai-insecure-api-key." + key])
The answer names realtime alone. Such a key can hold letters, digits and !#$%&'*+-.^_`|~ (RFC 6455, section 4.1).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any

from aiohttp import WSMsgType, web

from ..audio.encoders import encoded_rate
from ..audio.formats import STREAMS
from ..engine.speech_task import Usage
from ..text.chunks import GrowingText
from .access import SUBPROTOCOL
from .api_errors import ApiError, invalid, translate
from .audio_stream import encoded
from .request_log import Record
from .request_schema import ConfigMessage, SpeechRequest, check, speech_request
from .speech_route import usage_body
from .state import REQUEST_ID, SERVER, Server
from .synthesis import Synthesis
from .timing import Stalled, let_go, patiently

_HEARTBEAT = 30.0  # seconds between pings
_DRAIN_PATIENCE = 1.0  # seconds that text may take to go on while the server is shutting down
_POLL = 0.25  # seconds between checks whether text has stopped coming
# Text that has been sent and not yet been spoken may be as long as this many requests.
_MAX_PENDING_REQUESTS = 4
_MAX_TURNS = 256  # that wait or are being spoken


async def stream_speech(request: web.Request) -> web.WebSocketResponse:
    """Serves one connection, whose turns are spoken one after the other."""
    server = request.app[SERVER]
    socket = web.WebSocketResponse(
        heartbeat=_HEARTBEAT, max_msg_size=server.settings.max_body_bytes, protocols=[SUBPROTOCOL]
    )
    await socket.prepare(request)
    session = _Session(server, socket, request)
    server.sockets.add(socket)
    try:
        async for message in socket:
            if message.type is WSMsgType.ERROR:
                break
            if message.type is not WSMsgType.TEXT:
                await session.complain(invalid("send text messages that hold JSON", code="invalid_json"))
                continue
            try:
                await session.take(message.data)
            except ApiError as error:
                await session.complain(error)
    except ConnectionError:
        pass
    finally:
        server.sockets.discard(socket)
        let_go(request.transport, server.settings.stall_timeout)
        await session.stop()
    return socket


class _Turn:
    """One turn: its text, as it is written, and how it is to be spoken."""

    def __init__(self, number: int, request: SpeechRequest, record: Record) -> None:
        self.number = number
        self.request = request
        self.record = record
        self.speech: Synthesis | None = None  # once it is its turn
        self.text = GrowingText(self._cut)
        self._last = time.monotonic()  # when text came

    def add(self, text: str) -> None:
        """Takes more text."""
        self._last = time.monotonic()
        self.record.characters += len(text)
        self.text.feed(text)

    def idle(self, seconds: float) -> bool:
        """Whether it waits for text, of which none has come for so long."""
        return not self.text.ready and time.monotonic() - self._last > seconds

    def _cut(self, sentence: str) -> list[str]:
        assert self.speech is not None
        return self.speech.chunks(sentence)


class _Session:
    """One connection: its turns are spoken one after the other, while messages go on being read."""

    def __init__(self, server: Server, socket: web.WebSocketResponse, request: web.Request) -> None:
        self._server = server
        self._socket = socket
        self._request = request
        self._count = 0
        self._request_options = self._parsed({})
        self._turn: _Turn | None = None  # the one that the next text belongs to, if it has not ended
        self._turns: list[_Turn] = []  # the one that is being spoken, and those that wait
        self._task: asyncio.Task[None] | None = None
        self._end: str | None = None  # what ended the connection, as an outcome

    async def take(self, text: str) -> None:
        """Handles a message. Raises ApiError for what is wrong with it."""
        message = _parse(text)
        kind = message.pop("type", None)
        if kind == "config":
            self._request_options = self._parsed(message)
        elif kind == "text":
            self._add(message.pop("text", None))
        elif kind == "flush":
            turn, self._turn = self._turn, None
            (turn or self._begin()).text.finish()
        elif kind == "cancel":
            await self._drop_turns()
            await self._send({"type": "cancelled", "turn": self._count})
        else:
            raise invalid("type must be one of config, text, flush, cancel", "type")

    def _parsed(self, given: dict[str, Any]) -> SpeechRequest:
        return speech_request(check(given, ConfigMessage), self._server.voices, self._server.settings.history)

    async def complain(self, error: ApiError, turn: _Turn | None = None) -> None:
        """Tells the client what was wrong, and which turn it ended. Raises ConnectionError."""
        await self._send({"type": "error", **error.body(), **({"turn": turn.number} if turn else {})})

    async def stop(self) -> None:
        """Ends everything: the connection is over."""
        self._end = self._end or ("interrupted" if self._server.ending else "client_left")
        await self._drop_turns()

    async def _drop_turns(self) -> None:
        """Drops the turn that is being spoken and those that wait."""
        task, self._task, self._turn, self._turns = self._task, None, None, []
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    def _add(self, text: Any) -> None:
        if not isinstance(text, str):
            raise invalid("text must be a string", "text", "invalid_type")
        most = _MAX_PENDING_REQUESTS * self._server.settings.max_input_chars
        if sum(turn.text.waiting_characters for turn in self._turns) + len(text) > most:
            raise invalid(f"more than {most} characters wait to be spoken", "text", "string_above_max_length")
        if text and (self._turn is None or self._turn.text.complete):
            self._turn = self._begin()
        if self._turn is not None:
            self._turn.add(text)

    def _begin(self) -> _Turn:
        """A new turn, to be spoken after those that wait."""
        if len(self._turns) >= _MAX_TURNS:
            raise invalid(f"{_MAX_TURNS} turns wait to be spoken: send more when one is done", code="too_many_turns")
        self._count += 1
        request = self._request_options
        record = Record(f"{self._request[REQUEST_ID]}.{self._count}", request.voice, request.response_format)
        turn = _Turn(self._count, request, record)
        self._turns.append(turn)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(self._turns))
        return turn

    async def _run(self, turns: list[_Turn]) -> None:
        while turns:
            try:
                await self._speak(turns[0])
            finally:
                del turns[0]

    async def _speak(self, turn: _Turn) -> None:
        server, record = self._server, turn.record
        try:
            server.enter(record)
            usage = await self._deliver(turn)
            turn.text.close()
            seconds = round(record.audio_seconds, 3)
            done = {"type": "done", "turn": turn.number, "usage": usage_body(usage), "audio_seconds": seconds}
            await self._send(done)
            record.outcome = "ok" if record.audio_seconds else "empty"
        except asyncio.CancelledError:
            record.outcome = self._end or "interrupted"
            raise
        except ConnectionError:
            record.outcome = self._end or "client_left"
        except Exception as error:
            answer = translate(error, server.model.runner.retry_after)
            record.outcome, record.error = answer.code or "error", str(answer)
            turn.text.close()  # text that still comes begins a new turn
            with contextlib.suppress(ConnectionError):
                await self.complain(answer, turn)
        finally:
            server.leave(record)

    async def _deliver(self, turn: _Turn) -> Usage:
        """Sends a turn's audio. Returns what it took."""
        server, request, record = self._server, turn.request, turn.record
        if turn.text.complete and not record.characters:
            return Usage(seed=0)
        turn.speech = speech = Synthesis(server.model, request.options, server.admission)
        record.usage = speech.usage
        samples = speech.samples(turn.text)
        rate = encoded_rate(STREAMS[request.response_format], server.model.sample_rate)
        started = {"type": "started", "turn": turn.number, "format": request.response_format, "sample_rate": rate}
        watch = asyncio.create_task(self._finish_when_idle(turn))
        try:
            async with aclosing(samples), aclosing(encoded(server, samples, request, record)) as parts:
                first = True
                async for data in parts:
                    if first:
                        first = False
                        await self._send(started)
                    await self._write(self._socket.send_bytes(data))
        finally:
            watch.cancel()
        return speech.usage

    async def _finish_when_idle(self, turn: _Turn) -> None:
        """Completes a turn whose text has stopped coming, which would hold its slot, and the shutdown, for ever."""
        while not turn.text.complete:
            await asyncio.sleep(_POLL)
            patience = _DRAIN_PATIENCE if self._server.draining else self._server.settings.stall_timeout
            if turn.idle(patience):
                turn.text.finish()

    async def _send(self, message: dict[str, Any]) -> None:
        await self._write(self._socket.send_str(json.dumps(message)))

    async def _write(self, writing: Coroutine[Any, Any, None]) -> None:
        """Raises ConnectionError, also of a client that takes nothing: it is dropped."""
        try:
            await patiently(writing, self._server.settings.stall_timeout)
        except Stalled:
            self._end = "stalled"
            # A close frame would have to wait as well.
            if self._request.transport is not None:
                self._request.transport.abort()
            raise


def _parse(text: str) -> dict[str, Any]:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the message is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(message, dict):
        raise invalid("the message must be a JSON object", code="invalid_type")
    return message
