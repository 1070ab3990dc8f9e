"""The outcome of each speech request: one line in the log, and the metrics."""

from __future__ import annotations

import json
import logging
import re
import time
from dataclasses import dataclass, field
from typing import Any

from ..engine.speech_task import Usage
from .metrics import Metrics

log = logging.getLogger("csm_hybrid.server")

_PLAIN = re.compile(r"[!#-~]+")  # needs no quotes in a line of the log

# Outcomes of requests that were refused before any work.
REFUSED = frozenset({"queue_full", "queue_timeout", "shutting_down", "too_many_requests"})
# Outcomes of speeches that broke off.
BROKEN_OFF = frozenset({"client_left", "stalled", "request_timeout", "engine_error", "internal_error", "interrupted"})


@dataclass(eq=False)
class Record:
    """One speech on its way."""

    id: str  # a client may choose it, so it need not be unique
    voice: str = ""
    format: str = ""
    characters: int = 0  # of the request
    audio_seconds: float = 0.0
    usage: Usage | None = None  # once it is under way
    outcome: str = "internal_error"
    error: str | None = None  # the message that the client got
    underruns: int = 0
    begin: float = field(default_factory=time.monotonic)
    first: float | None = None  # when the first audio was handed on
    last: float | None = None  # when the last was
    _dry_at: float = 0.0  # when a client that plays the audio as it comes has none left

    def sent(self, seconds: float) -> None:
        """Notes that another ``seconds`` of audio have been made and handed on."""
        now = time.monotonic()
        if self.first is None:
            self.first = self._dry_at = now
        elif now > self._dry_at:
            self.underruns += 1
            self._dry_at = now
        self._dry_at += seconds
        self.last = now
        self.audio_seconds += seconds

    @property
    def first_audio(self) -> float | None:
        """Seconds from the request to its first audio."""
        return None if self.first is None else self.first - self.begin

    @property
    def speed(self) -> float | None:
        """Seconds of audio per second, from the request to its last audio."""
        return None if self.last is None else self.audio_seconds / max(1e-9, self.last - self.begin)

    def fields(self) -> dict[str, Any]:
        """What the log says of it."""
        return {
            "id": self.id,
            "voice": self.voice,
            "format": self.format,
            "characters": self.characters,
            "audio_s": round(self.audio_seconds, 2),
            "first_audio_s": None if self.first_audio is None else round(self.first_audio, 3),
            "speed": None if self.speed is None else round(self.speed, 2),
            "seconds": round(time.monotonic() - self.begin, 3),
            "seed": self.usage and self.usage.seed,
            "cut": (self.usage and self.usage.cut) or None,
            "outcome": self.outcome,
            "error": self.error and self.error[:300],
        }


class RequestLog:
    """Counts finished records and writes their lines."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def close(self, record: Record) -> None:
        """Counts a request and writes its line. Its outcome is ok, empty, or an error's code."""
        metrics = self._metrics
        metrics.requests.labels(record.outcome).inc()
        if record.outcome in REFUSED:
            metrics.rejected.labels(record.outcome).inc()
        elif record.outcome in BROKEN_OFF:
            metrics.aborted.labels(record.outcome).inc()
        metrics.audio_seconds.inc(record.audio_seconds)
        metrics.characters.inc(record.usage.characters if record.usage else 0)
        metrics.underruns.inc(record.underruns)
        if record.first_audio is not None:
            metrics.first_audio.observe(record.first_audio)
        if record.speed is not None and record.outcome == "ok":
            metrics.speed.observe(record.speed)
        log.info("speech", extra={"fields": record.fields()})


class TextFormatter(logging.Formatter):
    """A line for people: time, message, key=value; a value with spaces in it is quoted."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The message, and its fields after it."""
        line = super().formatMessage(record)
        fields = {k: str(v) for k, v in getattr(record, "fields", {}).items() if v not in (None, "")}
        return " ".join([line, *(f"{k}={v if _PLAIN.fullmatch(v) else json.dumps(v)}" for k, v in fields.items())])


class JsonFormatter(logging.Formatter):
    """A line for programs: one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """Time in seconds since 1970, level, message, and its fields."""
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "message": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)  # ASCII, which any stream can take; an unpaired surrogate is escaped
