"""What all handlers share."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from aiohttp import web

from .api_errors import overloaded, shutting_down
from .metrics import Metrics
from .request_log import Journal, Record
from .request_schema import Field
from .settings import Settings
from .synthesis import Voice
from .voices import Voices
from .worker import Worker


@dataclass
class Server:
    """The running server: its model, its voices, its worker and who is being served."""

    settings: Settings
    voice: Voice
    voices: Voices
    worker: Worker
    metrics: Metrics
    journal: Journal
    fields: tuple[Field, ...]  # of POST /v1/audio/speech
    encoders: ThreadPoolExecutor  # encoding is kept off the event loop
    created: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False
    ending: bool = False  # what still runs is being broken off
    open: set[Record] = field(default_factory=set)  # the speeches under way
    sockets: set[web.WebSocketResponse] = field(default_factory=set)

    @property
    def ready(self) -> bool:
        """Whether new work is taken."""
        return self.worker.alive and not self.draining

    def enter(self, record: Record) -> None:
        """Counts a speech in. Raises ApiError when the server cannot take one."""
        if not self.ready:
            raise shutting_down()
        most = self.worker.load.slots + self.settings.queue + self.settings.slow_readers
        if len(self.open) >= most:
            raise overloaded(
                f"{most} speeches are under way: try again later", "too_many_requests", self.worker.retry_after
            )
        self.open.add(record)

    def leave(self, record: Record) -> None:
        """Counts a speech out and writes its line."""
        self.open.discard(record)
        self.journal.close(record)


SERVER = web.AppKey("server", Server)
REQUEST_ID = web.RequestKey("request_id", str)
