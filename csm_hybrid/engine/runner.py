"""The one thread that owns the engine, and the handles by which others talk to it.

    any thread ──commands──▶ queue ──▶ engine thread: step, step, step …
        ▲                                       │ after each step: what every sequence has got
        └────── Utterance, notify() ◀───────────┘

A command is a function that runs on the engine's thread between two steps, so a cancellation frees its slot before
the next one. Nothing here knows of asyncio: a handle calls ``notify``, and whoever waits does so in its own way.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import CsmError, EngineError

if TYPE_CHECKING:
    from .engine import Engine, StageTimes
    from .request import FinishReason, Request
    from .sequence import Sequence

log = logging.getLogger(__name__)

Notify = Callable[[], None]

_LONGEST_RETRY = 60  # seconds
_MEAN_WEIGHT = 0.2  # of the newest request in the mean time that a slot is held


class QueueFull(Exception):
    """As many requests as may wait are waiting."""


class WaitedTooLong(Exception):
    """No slot became free in time."""


class EngineClosed(EngineError):
    """The engine has been closed, or its thread has ended."""


@dataclass(frozen=True)
class Admission:
    """How many requests may wait for a slot when one more comes, and for how many seconds it may."""

    queue: int
    patience: float


@dataclass(frozen=True)
class Outcome:
    """How an utterance ended, and its codes (F, K) int32."""

    reason: FinishReason
    codes: NDArray[np.int32]


@dataclass(frozen=True)
class Load:
    """What the engine is doing."""

    running: int
    waiting: int
    frames: int  # since the start
    slots: int


class Utterance:
    """A request's handle: its sound as it is made, then its outcome. One thread at a time may use it."""

    def __init__(self, request: Request, notify: Notify) -> None:
        self.request = request
        self.begun: float | None = None  # time.monotonic() when it got its slot
        self._notify = notify
        self._audio: deque[NDArray[np.float32]] = deque()  # an array of samples a frame
        self._result: Outcome | Exception | None = None
        # The engine thread's: its record there, and by when (time.monotonic()) it must have a slot.
        self.sequence: Sequence | None = None
        self.deadline: float | None = None

    @property
    def ready_frames(self) -> int:
        """Frames of sound that can be taken now."""
        return len(self._audio)

    @property
    def ended(self) -> bool:
        """Whether no more frames will come than are ready."""
        return self._result is not None

    def take(self, frames: int) -> NDArray[np.float32]:
        """The samples (n,) float32 of up to so many frames that are ready."""
        return np.concatenate([self._audio.popleft() for _ in range(min(frames, len(self._audio)))])

    def outcome(self) -> Outcome:
        """How it ended; only once it has. Raises the engine's error, WaitedTooLong, EngineClosed."""
        if isinstance(self._result, Exception):
            raise self._result
        assert self._result is not None
        return self._result

    def deliver(self, audio: Iterable[NDArray[np.float32]], result: Outcome | Exception | None) -> None:
        """More sound, and the result if that was all; for the engine's thread."""
        self._audio.extend(audio)
        self._result = self._result or result
        self._notify()


class Runner:
    """Runs an engine on a thread of its own, from the first request on. Its methods may be called on any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        self._stopping = False
        self._exiting = False
        self._on_end: Notify = lambda: None
        self._hold_seconds = 5.0  # a running mean of how long a request holds its slot
        self._lock = threading.Lock()  # of the thread's start and the next three
        self._known: set[Utterance] = set()  # all that have not ended
        self._waiting: set[Utterance] = set()  # those that wait for a first slot
        self._running: set[Utterance] = set()  # those that have one
        # The engine thread's.
        self._open: list[Utterance] = []

    def start(self, on_end: Notify | None = None) -> None:
        """Starts the thread, if it does not run; ``on_end`` is called on it when it ends for whatever reason.

        Raises EngineError in a process that was forked from the one that made it, EngineClosed after ``stop``.
        """
        if os.getpid() != self._process:
            raise EngineError(
                "the model was loaded before this process was forked, and its threads stayed behind: load it in the"
                " new process"
            )
        if self._exiting and threading.current_thread() is not threading.main_thread():
            threading.Event().wait()  # a daemon thread that speaks on while the interpreter ends: it ends with it
        with self._lock:
            if self._stopping:
                raise EngineClosed("the model is closed")
            if on_end is not None:
                self._on_end = on_end
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
                self._thread.start()

    def stop(self, *, exiting: bool = False) -> None:
        """Ends what is still running and the thread; safe to call twice.

        ``exiting``: the interpreter ends, and the daemon threads that still listen are to hear nothing of it.
        """
        self._exiting = self._exiting or exiting
        self._stopping = True
        thread = self._thread
        if thread is not None and os.getpid() == self._process and thread is not threading.current_thread():
            self._commands.put(lambda: None)
            thread.join()

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        return not self._stopping and (self._thread is None or self._thread.is_alive())

    @property
    def slots(self) -> int:
        """Requests that are spoken at once."""
        return self._engine.slots

    @property
    def times(self) -> StageTimes:
        """Seconds spent in each stage since the start."""
        return self._engine.times

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

    def submit(
        self,
        request: Request,
        *,
        after: Utterance | None = None,
        admission: Admission | None = None,
        notify: Notify = lambda: None,
    ) -> Utterance:
        """Hands a request to the engine; with ``after``, as the continuation of an earlier one of the same speech.

        ``notify`` is called on the engine's thread whenever there is news. Without ``admission`` a request waits as
        long as it takes, as a continuation always does. Raises QueueFull, and EngineError as ``start`` does.
        """
        self.start()
        if after is not None:
            admission = None
        utterance = Utterance(request, notify)
        utterance.deadline = None if admission is None else time.monotonic() + admission.patience
        with self._lock:
            free = max(0, self._engine.slots - len(self._running))
            if admission is not None and len(self._waiting) >= admission.queue + free:
                raise QueueFull
            self._known.add(utterance)
            if after is None:
                self._waiting.add(utterance)
        self._commands.put(lambda: self._begin(utterance, after))
        return utterance

    def cancel(self, utterance: Utterance) -> None:
        """Ends an utterance before the engine's next step; nothing happens to one that has ended.

        Takes no lock, so that it may be called wherever an object's end is.
        """
        if not utterance.ended:
            self._commands.put(lambda: self._end(utterance))

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
            if not self._exiting:
                self._end_all()
            self._on_end()

    def _end_all(self) -> None:
        """Ends everything, also what was submitted and has not been seen here."""
        with self._lock:
            self._stopping = True
        closed = EngineClosed("the model is closed")
        self._give_up(closed)
        with self._lock:
            known = list(self._known)
        for utterance in known:
            self._deliver(utterance, (), closed)

    def _obey(self, *, wait: bool) -> None:
        """Runs all commands that are there; an idle engine waits for one."""
        with contextlib.suppress(queue.Empty):
            command = self._commands.get(block=wait)
            while True:
                command()
                command = self._commands.get_nowait()

    def _begin(self, utterance: Utterance, after: Utterance | None) -> None:
        try:
            before = None if after is None else after.sequence
            utterance.sequence = self._engine.submit(utterance.request, after=before)
        except Exception as error:
            self._deliver(utterance, (), _as_csm(error))
            return
        self._open.append(utterance)

    def _end(self, utterance: Utterance) -> None:
        if utterance.sequence is not None:
            self._engine.cancel(utterance.sequence)

    def _publish(self) -> None:
        """Delivers all that is new, and gives up those that have waited too long."""
        now = time.monotonic()
        for utterance in list(self._open):
            sequence = utterance.sequence
            assert sequence is not None
            result: Outcome | Exception | None = None
            if utterance.begun is None and (sequence.slot is not None or sequence.frames > 0):
                self._seated(utterance, now)
            elif utterance.begun is None and utterance.deadline is not None and now > utterance.deadline:
                self._engine.cancel(sequence)
                result = WaitedTooLong()
            audio = list(sequence.audio)
            sequence.audio.clear()
            if sequence.finish_reason is not None and result is None:
                result = sequence.error or Outcome(sequence.finish_reason, _codes(sequence))
            if result is not None:
                self._open.remove(utterance)
            if audio or result is not None:
                self._deliver(utterance, audio, result)

    def _seated(self, utterance: Utterance, now: float) -> None:
        utterance.begun = now
        with self._lock:
            self._waiting.discard(utterance)
            self._running.add(utterance)

    def _deliver(
        self, utterance: Utterance, audio: Iterable[NDArray[np.float32]], result: Outcome | Exception | None
    ) -> None:
        if result is not None:
            with self._lock:
                for group in (self._known, self._waiting, self._running):
                    group.discard(utterance)
            if utterance.begun is not None:
                held = time.monotonic() - utterance.begun
                self._hold_seconds += (held - self._hold_seconds) * _MEAN_WEIGHT
        utterance.deliver(audio, result)

    def _give_up(self, error: Exception) -> None:
        given_up, self._open = self._open, []
        for utterance in given_up:
            with contextlib.suppress(Exception):
                self._end(utterance)
            self._deliver(utterance, (), error)


def _codes(sequence: Sequence) -> NDArray[np.int32]:
    return np.array(sequence.codes, dtype=np.int32).reshape(-1, sequence.prompt.shape[1] - 1)


def _as_csm(error: Exception) -> CsmError:
    return error if isinstance(error, CsmError) else EngineError(f"{type(error).__name__}: {error}")
