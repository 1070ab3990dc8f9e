"""A server on a free port of the loopback interface, and a client for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web
from fake_model import FakeModel

from csm_hybrid.server.app import create_app, make_runner
from csm_hybrid.server.settings import Settings
from csm_hybrid.server.state import SERVER, Server

SPEECH = "/v1/audio/speech"


@dataclass
class Served:
    client: aiohttp.ClientSession
    server: Server
    model: FakeModel
    app: web.Application
    host: str
    port: int

    async def speak(self, text: str = "Hello there.", **more: Any) -> tuple[int, bytes]:
        """Status and body of a speech request."""
        async with self.client.post(SPEECH, json=body(text, **more)) as answer:
            return answer.status, await answer.read()

    def metric(self, line: str) -> float:
        """The value of one line of the metrics, 0 when it is not there."""
        for row in self.server.metrics.text().decode().splitlines():
            if row.startswith(line + " "):
                return float(row.split()[-1])
        return 0.0


def body(text: str = "Hello there.", **more: Any) -> dict[str, Any]:
    return {"model": "csm", "input": text, "voice": "alloy", "response_format": "pcm", "seed": 1, **more}


@contextlib.asynccontextmanager
async def serving(
    model: FakeModel | None = None, headers: Any = None, force_close: bool = False, **settings: Any
) -> AsyncIterator[Served]:
    model = model or FakeModel()
    app = create_app(model, Settings(**settings))
    runner = make_runner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        connector = aiohttp.TCPConnector(limit=0, force_close=force_close)
        async with aiohttp.ClientSession(f"http://{host}:{port}", headers=headers, connector=connector) as client:
            yield Served(client, app[SERVER], model, app, host, port)
    finally:
        await runner.cleanup()
    assert model.closed
    assert model.runner.load.running == model.runner.load.waiting == 0


class SlowSocket:
    """A WebSocket client that reads only what it is told to: the server's writes to it soon have to wait."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *messages: Any) -> None:
        for message in messages:
            data = json.dumps(message).encode()
            size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
            mask = os.urandom(4)
            key = (mask * (len(data) // 4 + 1))[: len(data)]
            self.writer.write(b"\x81" + size + mask + bytes(a ^ b for a, b in zip(data, key, strict=True)))

    async def receive(self) -> dict[str, Any] | bytes:
        """The next message of text or audio."""
        while True:
            head, size = await self.reader.readexactly(2)
            if size > 125:
                size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8), "big")
            data = await self.reader.readexactly(size)
            if head & 15 in (1, 2):
                return json.loads(data) if head & 15 == 1 else data

    async def listen(self, until: str) -> list[dict[str, Any]]:
        """All JSON messages to the first of a kind."""
        told = []
        while not told or told[-1]["type"] != until:
            message = await self.receive()
            if isinstance(message, dict):
                told.append(message)
        return told


@contextlib.asynccontextmanager
async def slow_socket(served: Served, path: str) -> AsyncIterator[SlowSocket]:
    reader, writer = await asyncio.open_connection(served.host, served.port, limit=4096)
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    writer.write(f"{head}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    try:
        yield SlowSocket(reader, writer)
    finally:
        writer.transport.abort()
