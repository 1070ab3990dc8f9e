"""WebSocket /v1/audio/speech/stream: text in pieces, as a language model writes it; audio out as it is made.

The client sends JSON messages:
    {"type": "config", ...}          how to speak: the fields of POST /v1/audio/speech but for model and input;
                                     pcm and the voice alloy by default; holds from the next turn on
    {"type": "text", "text": "..."}  more text, cut anywhere; each sentence is spoken as soon as it is whole
    {"type": "flush"}                the turn's text is complete: speak what is left. So it is when no text has come
                                     for --stall-timeout seconds, or for one when the server is shutting down
    {"type": "cancel"}               be silent: what is being spoken and what waits is dropped
The server sends the audio of a turn as binary messages, one continuous encoding a turn, and JSON messages:
    {"type": "started", "format", "sample_rate"}    a turn's first audio follows
    {"type": "done", "usage", "audio_seconds"}      the turn has been spoken to its end
    {"type": "cancelled"}                           after cancel; no more audio of that turn comes
    {"type": "error", "error": {...}}               what was wrong; the connection stays open

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
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from aiohttp import WSMsgType, web

from ..sentences import SentenceSplitter, speakable
from .access import SUBPROTOCOL
from .audio import usage
from .delivery import encoded
from .encode import FORMATS
from .errors import ApiError, invalid, translate
from .journal import Record
from .schema import Manner, check, manner
from .speaker import Speech
from .state import REQUEST_ID, SERVER, Server
from .timing import timeout

_DEFAULTS = {"voice": "alloy", "response_format": "pcm"}
_NOT_TAKEN = ("model", "input", "stream_format")  # of the fields of POST /v1/audio/speech
_HEARTBEAT = 30.0  # seconds between pings
_DRAIN_PATIENCE = 1.0  # seconds that text may take to go on while the server is shutting down
_POLL = 0.25  # seconds between looks at whether text has stopped coming
# Text that has been sent and not yet been spoken may be as long as this many requests.
_MOST_PENDING = 4


async def stream_speech(request: web.Request) -> web.WebSocketResponse:
    """Serves one connection; it has one turn at a time."""
    server = request.app[SERVER]
    socket = web.WebSocketResponse(
        heartbeat=_HEARTBEAT, max_msg_size=server.settings.max_body_bytes, protocols=[SUBPROTOCOL]
    )
    await socket.prepare(request)
    session = _Session(server, socket, request[REQUEST_ID])
    server.sockets.add(socket)
    try:
        async for message in socket:
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
        await session.stop()
    return socket


@dataclass
class _Backlog:
    """How much text a connection has sent that has not been spoken yet."""

    characters: int = 0


class _Turn:
    """The text of one turn, sentence by sentence."""

    def __init__(self, how: Manner, record: Record, backlog: _Backlog, server: Server) -> None:
        self.how = how
        self.record = record
        self.complete = False
        self._server = server
        self._backlog = backlog
        self._last = time.monotonic()  # when text came
        self._splitter = SentenceSplitter()
        self._sentences: asyncio.Queue[str | None] = asyncio.Queue()

    def add(self, text: str) -> None:
        """Takes more text."""
        self._last = time.monotonic()
        self.record.characters += len(text)
        self._put(self._splitter.feed(text))

    def finish(self) -> None:
        """The text is complete."""
        self.complete = True
        self._put(self._splitter.flush())
        self._sentences.put_nowait(None)

    def _put(self, sentences: list[str]) -> None:
        for sentence in sentences:
            self._backlog.characters += len(sentence)
            self._sentences.put_nowait(sentence)

    async def pieces(self) -> AsyncIterator[str]:
        """The sentences, each as soon as it is whole."""
        while (sentence := await self._next()) is not None:
            self._backlog.characters -= len(sentence)
            if speakable(sentence):
                yield sentence

    async def _next(self) -> str | None:
        """The next sentence, or None at the end. A turn whose text has stopped coming is brought to its end: it
        would hold its place, and the server's shutdown, for ever.
        """
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                async with timeout(_POLL):
                    return await self._sentences.get()
            patience = _DRAIN_PATIENCE if self._server.draining else self._server.settings.stall_timeout
            if not self.complete and time.monotonic() - self._last > patience:
                self.finish()


class _Session:
    """One connection: its turns are spoken one after the other, while messages go on being read."""

    def __init__(self, server: Server, socket: web.WebSocketResponse, name: str) -> None:
        self._server = server
        self._socket = socket
        self._name = name
        self._count = 0
        self._fields = tuple(field for field in server.fields if field.name not in _NOT_TAKEN)
        self._how = self._manner({})
        self._turn: _Turn | None = None  # the one that takes text
        self._turns: asyncio.Queue[_Turn] = asyncio.Queue()  # spoken in this order
        self._backlog = _Backlog()
        self._task: asyncio.Task[None] | None = None
        self._left = False

    async def take(self, text: str) -> None:
        """Does what a message says. Raises ApiError."""
        message = _parse(text)
        kind = message.pop("type", None)
        if kind == "config":
            self._how = self._manner(message)
        elif kind == "text":
            self._add(message.pop("text", None))
        elif kind == "flush":
            if self._turn is not None and not self._turn.complete:
                self._turn.finish()
            self._turn = None
        elif kind == "cancel":
            await self._silence()
            await self._send({"type": "cancelled"})
        else:
            raise invalid("type must be one of config, text, flush, cancel", "type")

    def _manner(self, given: dict[str, Any]) -> Manner:
        return manner(_DEFAULTS | check(given, self._fields), self._server.voices)

    async def complain(self, error: ApiError) -> None:
        """Tells the client what was wrong."""
        await self._send({"type": "error", **error.body()})

    async def stop(self) -> None:
        """Ends everything: the client has left."""
        self._left = True
        await self._silence()

    async def _silence(self) -> None:
        """Drops what is being spoken and what waits."""
        task, self._task, self._turn = self._task, None, None
        self._turns, self._backlog = asyncio.Queue(), _Backlog()
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _add(self, text: Any) -> None:
        if not isinstance(text, str):
            raise invalid("text must be a string", "text", "invalid_type")
        most = _MOST_PENDING * self._server.settings.max_input_chars
        if self._backlog.characters + len(text) > most:
            raise invalid(f"more than {most} characters wait to be spoken", "text", "string_above_max_length")
        if self._turn is None or self._turn.complete:
            self._count += 1
            record = Record(f"{self._name}.{self._count}", self._how.voice, self._how.response_format)
            self._turn = _Turn(self._how, record, self._backlog, self._server)
            self._turns.put_nowait(self._turn)
        if self._task is None:
            self._task = asyncio.create_task(self._run(self._turns))
        self._turn.add(text)

    async def _run(self, turns: asyncio.Queue[_Turn]) -> None:
        while True:
            await self._speak(await turns.get())

    async def _speak(self, turn: _Turn) -> None:
        server, record = self._server, turn.record
        try:
            server.enter(record)
            await self._deliver(turn)
            record.outcome = "ok" if record.audio_seconds else "empty"
        except asyncio.CancelledError:
            record.outcome = "client_left" if self._left else "interrupted"
            raise
        except ConnectionError:
            record.outcome = "client_left"
        except asyncio.TimeoutError:
            record.outcome = "stalled"
            await self._socket.close()
        except Exception as error:
            told = translate(error, server.worker.retry_after)
            record.outcome, record.error = told.code or "error", str(told)
            if self._turn is turn:
                self._turn = None  # text that still comes begins a new turn
            with contextlib.suppress(ConnectionError):
                await self.complain(told)
        finally:
            server.leave(record)

    async def _deliver(self, turn: _Turn) -> None:
        server, how, record = self._server, turn.how, turn.record
        speech = Speech(server.voice, server.worker, how, server.settings.history)
        record.seed = speech.account.seed
        samples = speech.samples(turn.pieces())
        rate = FORMATS[how.response_format].rate or server.voice.sample_rate
        async with aclosing(samples), aclosing(encoded(server, samples, how, record)) as chunks:
            first = True
            async for chunk in chunks:
                if first:
                    first = False
                    await self._send({"type": "started", "format": how.response_format, "sample_rate": rate})
                async with timeout(server.settings.stall_timeout):
                    await self._socket.send_bytes(chunk)
        record.cut = speech.account.cut
        seconds = round(record.audio_seconds, 3)
        await self._send({"type": "done", "usage": usage(speech.account), "audio_seconds": seconds})

    async def _send(self, message: dict[str, Any]) -> None:
        async with timeout(self._server.settings.stall_timeout):
            await self._socket.send_str(json.dumps(message))


def _parse(text: str) -> dict[str, Any]:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the message is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(message, dict):
        raise invalid("the message must be a JSON object", code="invalid_type")
    return message
