"""A server on a free port of the loopback interface, and a client for it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web
from standin import Voice

from csm_hybrid.server.app import create_app, make_runner
from csm_hybrid.server.settings import Settings
from csm_hybrid.server.state import SERVER, Server

SPEECH = "/v1/audio/speech"


@dataclass
class Served:
    client: aiohttp.ClientSession
    server: Server
    voice: Voice
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
    voice: Voice | None = None, headers: Any = None, force_close: bool = False, **settings: Any
) -> AsyncIterator[Served]:
    voice = voice or Voice()
    app = create_app(voice, Settings(**settings))
    runner = make_runner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        connector = aiohttp.TCPConnector(limit=0, force_close=force_close)
        async with aiohttp.ClientSession(f"http://{host}:{port}", headers=headers, connector=connector) as client:
            yield Served(client, app[SERVER], voice, app, host, port)
    finally:
        await runner.cleanup()
    assert voice.closed
    assert voice.engine.running == voice.engine.waiting == 0
