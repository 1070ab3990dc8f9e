"""What all handlers share."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from aiohttp import web

from ..engine.runner import Admission
from .api_errors import overloaded, shutting_down
from .metrics import Metrics
from .request_log import Record, RequestLog
from .request_schema import SpeechBody
from .settings import Settings
from .synthesis import SpeechModel
from .voices import Voices


@dataclass
class Server:
    """The running server: its model, its voices, and who is being served."""

    settings: Settings
    model: SpeechModel
    voices: Voices
    metrics: Metrics
    request_log: RequestLog
    body_model: type[SpeechBody]  # of POST /v1/audio/speech
    encoders: ThreadPoolExecutor  # encoding is kept off the event loop
    created: int = field(default_factory=lambda: int(time.time()))
    engine_ended: asyncio.Event = field(default_factory=asyncio.Event)
    draining: bool = False
    ending: bool = False  # what still runs is being cut off
    open: set[Record] = field(default_factory=set)  # the speeches under way
    sockets: set[web.WebSocketResponse] = field(default_factory=set)

    @property
    def ready(self) -> bool:
        """Whether new work is taken."""
        return self.model.runner.alive and not self.draining

    @property
    def admission(self) -> Admission:
        """How long requests may queue for a slot."""
        return Admission(self.settings.queue, self.settings.queue_timeout)

    def enter(self, record: Record) -> None:
        """Counts a speech in. Raises ApiError when the server cannot take one."""
        if not self.ready:
            raise shutting_down()
        most = self.model.runner.slots + self.settings.queue + self.settings.slow_readers
        if len(self.open) >= most:
            raise overloaded(
                f"{most} speeches are under way: try again later", "too_many_requests", self.model.runner.retry_after
            )
        self.open.add(record)

    def leave(self, record: Record) -> None:
        """Counts a speech out and writes its line."""
        self.open.discard(record)
        self.request_log.close(record)


SERVER = web.AppKey("server", Server)
REQUEST_ID = web.RequestKey("request_id", str)
