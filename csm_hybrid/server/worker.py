"""The one thread that owns the engine, and the way between it and asyncio.

    event loop ──commands──▶ queue ──▶ engine thread: step, step, step …
        ▲                                        │ after each step: what every stream has got
        └────────── call_soon_threadsafe ◀───────┘

A command is a function that runs on the engine's thread between two steps, so a cancellation frees its slot
before the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..audio.files import to_int16
from ..errors import CsmError, EngineError

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.request import FinishReason, Request, Stream

log = logging.getLogger(__name__)

# How long the idle thread sleeps at most; a command wakes it at once.
_IDLE_SECONDS = 0.5
_LONGEST_RETRY = 60  # seconds
_MEAN_WEIGHT = 0.2  # of the newest request in the mean time that a slot is held


class QueueFull(Exception):
    """As many requests as may wait are waiting."""


class WaitedTooLong(Exception):
    """No slot became free in time."""


class Ended(Exception):
    """The worker has stopped."""


@dataclass(frozen=True)
class Outcome:
    """How an utterance ended."""

    reason: FinishReason
    seed: int
    frames: int


@dataclass(frozen=True)
class Begun:
    """An utterance has got a slot."""


# What the engine's thread reports of an utterance: it has begun, samples, its end.
News = Begun | NDArray[np.int16] | Outcome | Exception


class Utterance:
    """The event loop's side of one stream: samples arrive here as they are made."""

    def __init__(self, request: Request, after: Utterance | None) -> None:
        self.request = request
        self.begun: float | None = None  # time.monotonic() when it got its slot
        # These three are the engine thread's.
        self.after = after
        self.stream: Stream | None = None
        self.seated = False
        self._chunks: deque[NDArray[np.int16]] = deque()
        self._result: Outcome | Exception | None = None
        self._news = asyncio.Event()
        self._end = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether all of its samples have arrived."""
        return self._result is not None

    @property
    def failed(self) -> bool:
        """Whether it has ended with an error."""
        return isinstance(self._result, Exception)

    async def take(self, most: int) -> NDArray[np.int16] | None:
        """The next samples, at most about ``most`` of them, or None at the end.

        Raises the engine's error, WaitedTooLong when no slot became free in time, Ended when the worker stopped.
        """
        while not self._chunks:
            if isinstance(self._result, Exception):
                raise self._result
            if self._result is not None:
                return None
            self._news.clear()
            await self._news.wait()
        parts = [self._chunks.popleft()]
        while self._chunks and sum(map(len, parts)) + len(self._chunks[0]) <= most:
            parts.append(self._chunks.popleft())
        return np.concatenate(parts)

    async def wait(self) -> None:
        """Returns when all of its samples have arrived."""
        await self._end.wait()

    @property
    def outcome(self) -> Outcome:
        """How it ended; only once it has, and without an error."""
        assert isinstance(self._result, Outcome)
        return self._result

    def _arrive(self, news: News) -> None:
        if isinstance(news, Begun):
            self.begun = time.monotonic()
        elif isinstance(news, np.ndarray):
            self._chunks.append(news)
        elif self._result is None:
            self._result = news
            self._end.set()
        self._news.set()


@dataclass(frozen=True)
class Load:
    """What the engine is doing."""

    running: int
    waiting: int
    frames: int  # since the start
    slots: int


class Worker:
    """Runs an engine on a thread of its own. All methods belong to the event loop.

    ``queue_length`` is how many requests may wait for a slot, and ``patience`` for how many seconds one may.
    """

    def __init__(self, engine: Engine, *, queue_length: int = 32, patience: float = 30.0) -> None:
        self._engine = engine
        self._queue_length = queue_length
        self._patience = patience
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._ended = asyncio.Event()
        self._hold_seconds = 5.0  # a running mean of how long a request holds its slot
        # The event loop's: all utterances that have not ended; those that wait for a first slot; those that have one.
        self._known: set[Utterance] = set()
        self._waiting: set[Utterance] = set()
        self._running: set[Utterance] = set()
        # The engine thread's: what it has in hand, and by when (time.monotonic()) one must have a slot.
        self._open: list[Utterance] = []
        self._deadlines: dict[Utterance, float] = {}

    def start(self) -> None:
        """Starts the thread; call from within the event loop that will use it."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Ends what is still running and the thread."""
        self._stopping = True
        self._commands.put(lambda: None)
        if self._thread is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    async def wait(self) -> None:
        """Returns when the thread has ended: it was stopped, or died."""
        await self._ended.wait()

    @property
    def alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread is not None and self._thread.is_alive() and not self._stopping

    @property
    def load(self) -> Load:
        """What the engine is doing now."""
        engine = self._engine
        return Load(engine.running, engine.waiting, engine.times.frames, engine.slots)

    @property
    def retry_after(self) -> int:
        """Whole seconds until a place in the queue is likely to be free, at least 1."""
        turns = (1 + len(self._waiting)) / self._engine.slots
        return max(1, min(_LONGEST_RETRY, math.ceil(self._hold_seconds * turns)))

    def submit(self, request: Request, *, after: Utterance | None = None) -> Utterance:
        """Hands a request to the engine; with ``after``, as the continuation of an earlier one of the same speech.

        Raises QueueFull at once when too many are waiting, and Ended. A continuation never is refused.
        """
        if not self.alive:
            raise Ended
        free = max(0, self._engine.slots - len(self._running))
        if after is None and len(self._waiting) >= self._queue_length + free:
            raise QueueFull
        utterance = Utterance(request, after)
        deadline = time.monotonic() + self._patience if after is None else None
        self._known.add(utterance)
        if after is None:
            self._waiting.add(utterance)
        self._commands.put(lambda: self._begin(utterance, deadline))
        return utterance

    def cancel(self, utterance: Utterance) -> None:
        """Ends an utterance before the engine's next step; nothing happens to one that has ended."""
        if not utterance.ended:
            self._commands.put(lambda: self._end(utterance))

    def _deliver(self, news: list[tuple[Utterance, News]]) -> None:
        for utterance, item in news:
            utterance._arrive(item)
            if isinstance(item, Begun):
                self._waiting.discard(utterance)
                self._running.add(utterance)
            elif not isinstance(item, np.ndarray):
                for group in (self._known, self._waiting, self._running):
                    group.discard(utterance)
                if utterance.begun is not None:
                    held = time.monotonic() - utterance.begun
                    self._hold_seconds += (held - self._hold_seconds) * _MEAN_WEIGHT

    # What follows runs on the engine's thread.

    def _run(self) -> None:
        try:
            busy = False
            while not self._stopping:
                try:
                    self._obey(wait=not busy)
                    busy = self._engine.step()
                    self._publish()
                except Exception as error:
                    # The engine keeps a request's failure to itself: this is a fault of the engine's own.
                    log.exception("the engine failed")
                    busy = False
                    self._give_up(_as_csm(error))
        except BaseException:
            log.critical("the engine's thread has ended", exc_info=True)
        finally:
            self._stopping = True
            self._give_up(Ended())
            # Whatever was submitted and has not been seen here ends too.
            self._call(lambda: self._deliver([(utterance, Ended()) for utterance in self._known]))
            self._call(self._ended.set)

    def _obey(self, *, wait: bool) -> None:
        """Runs all commands that are there; an idle engine waits for one."""
        try:
            command = self._commands.get(timeout=_IDLE_SECONDS) if wait else self._commands.get_nowait()
            while True:
                command()
                command = self._commands.get_nowait()
        except queue.Empty:
            pass

    def _begin(self, utterance: Utterance, deadline: float | None) -> None:
        after, utterance.after = utterance.after, None
        try:
            utterance.stream = self._engine.submit(utterance.request, after=after.stream if after else None)
        except Exception as error:
            self._send([(utterance, _as_csm(error))])
            return
        self._open.append(utterance)
        if deadline is not None:
            self._deadlines[utterance] = deadline

    def _end(self, utterance: Utterance) -> None:
        if utterance.stream is not None:
            self._engine.cancel(utterance.stream)

    def _publish(self) -> None:
        """Sends all that is new, and gives up those that have waited too long."""
        now = time.monotonic()
        news: list[tuple[Utterance, News]] = []
        still_open = []
        for utterance in self._open:
            stream = utterance.stream
            assert stream is not None
            if utterance in self._deadlines and stream.slot is None and not stream.finished:
                if now > self._deadlines[utterance]:
                    self._engine.cancel(stream)
                    news.append((utterance, WaitedTooLong()))
            elif not utterance.seated:
                utterance.seated = stream.slot is not None or stream.frames > 0
                if utterance.seated:
                    self._deadlines.pop(utterance, None)
                    news.append((utterance, Begun()))
            while stream.audio:
                news.append((utterance, to_int16(stream.audio.popleft())))
            if stream.finish_reason is not None:
                self._deadlines.pop(utterance, None)
                end = stream.error or Outcome(stream.finish_reason, stream.seed, stream.frames)
                news.append((utterance, end))
            else:
                still_open.append(utterance)
        self._open = still_open
        self._send(news)

    def _give_up(self, error: Exception) -> None:
        for utterance in self._open:
            with contextlib.suppress(Exception):
                self._end(utterance)
        self._send([(utterance, error) for utterance in self._open])
        self._open = []
        self._deadlines.clear()

    def _send(self, news: list[tuple[Utterance, News]]) -> None:
        if news:
            self._call(lambda: self._deliver(news))

    def _call(self, function: Callable[[], None]) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the event loop has closed: nobody listens any more
            self._loop.call_soon_threadsafe(function)


def _as_csm(error: Exception) -> CsmError:
    return error if isinstance(error, CsmError) else EngineError(f"{type(error).__name__}: {error}")
