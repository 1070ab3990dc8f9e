"""A speech on its way: the chunks of its text, one utterance each, in one unbroken sound.

While a chunk is being heard, the next one is made ahead, or several that are short: a fast listener thus finds no gap
between them, a slow one never holds a slot idle, and what is buffered for them stays below a few utterances.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..defaults import LONGEST_CHUNK
from .runner import Utterance

if TYPE_CHECKING:
    from ..text.chunks import ChunkSource
    from .planner import ChunkPlanner
    from .request import FinishReason
    from .runner import Admission, Notify, Runner

# Most chunks that are made ahead.
_MOST_AHEAD = 4


@dataclass
class Usage:
    """What a speech has used and given so far; ``seed`` repeats it."""

    seed: int
    text_tokens: int = 0  # of the chunks that were handed to the engine
    frames: int = 0  # that were taken
    characters: int = 0  # of the chunks that were taken to their end
    cut: bool = False  # whether any of these was


@dataclass(frozen=True)
class _Chunk:
    """A chunk on its way, and how long its text is."""

    utterance: Utterance
    characters: int


class SpeechTask:
    """Speaks the chunks of a source. ``advance`` hands them to the engine, ``take`` gives their sound; neither waits.

    ``notify`` is called, on any thread, when one of the two may have something to do. The library's iterator and the
    server's asynchronous stream only wait in their own ways. One thread at a time may use it; any may ``close`` it.
    """

    def __init__(
        self,
        runner: Runner,
        planner: ChunkPlanner,
        source: ChunkSource,
        *,
        notify: Notify,
        admission: Admission | None = None,
        usage: Usage | None = None,
    ) -> None:
        self.usage = usage or Usage(planner.seed)
        self.source = source
        self._runner = runner
        self._planner = planner
        self._notify = notify
        self._admission = admission
        self._codes: list[NDArray[np.int32]] = []  # (F, K) of every chunk that was taken to its end
        self._taken = 0  # frames of the chunk that is being heard
        self._live: deque[_Chunk] = deque()  # handed to the engine, and not yet taken to the end
        self._last: Utterance | None = None  # that was handed to it
        self._last_reason: FinishReason | None = None  # of the chunk that was taken to its end last
        self._failure: Exception | None = None
        self._end: FinishReason | None = None  # what ended it other than its last chunk's end
        self._lock = threading.Lock()  # so that nothing is handed to the engine once it is closed
        source.watch(notify)

    @property
    def due(self) -> bool:
        """Whether ``advance`` has something to do: the next chunk's text is there, and its turn has come.

        Behind the chunk that is being heard, one of the longest kind is made ahead, or a few short ones.
        """
        if self._end is not None or self._failure is not None or self._used_up or not self.source.ready:
            return False
        ahead = list(self._live)[1:]
        return len(ahead) < _MOST_AHEAD and sum(chunk.characters for chunk in ahead) < LONGEST_CHUNK // 2

    @property
    def waits_for_text(self) -> bool:
        """Whether it is the text's turn: everything so far has been heard."""
        return not self._live and not self.done

    @property
    def done(self) -> bool:
        """Whether nothing more will come; then ``take`` raises what it ended with, if that was an error."""
        return self._end is not None or (
            not self._live and (self._failure is not None or self._used_up or self.source.ended)
        )

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended: ``eos`` (the model ended it), ``length``, ``cancelled``, ``error``; None while it runs."""
        if self._end is not None or not self.done or self._failure is not None:
            return self._end
        return "length" if self.usage.cut else self._last_reason

    def codes(self, codebooks: int) -> NDArray[np.int32]:
        """The codes (F, K) of the frames that were taken, of so many codebooks."""
        sequence = self._live[0].utterance.sequence if self._live else None
        heard = [] if sequence is None else sequence.codes[: self._taken]
        return np.concatenate([*self._codes, np.array(heard, dtype=np.int32).reshape(-1, codebooks)])

    def advance(self) -> None:
        """Hands the chunks that are due to the engine. It may take some milliseconds: texts are tokenised.

        What goes wrong with a chunk is raised by ``take``, when what came before it has been taken.
        """
        while self.due:
            try:
                chunk = self.source.take()
                if chunk is None:
                    return
                request = self._planner.request(chunk, alone=self.source.alone)
                with self._lock:
                    if self._end is not None:
                        return
                    self._last = self._runner.submit(
                        request, after=self._last, admission=self._admission, notify=self._notify
                    )
                    self._live.append(_Chunk(self._last, len(chunk)))
            except Exception as error:
                self._failure = error
                self.source.close()
                return
            self.usage.text_tokens += len(request.prompt) - request.context

    def take(self, frames: int, least: int = 1) -> NDArray[np.float32] | None:
        """Samples (n,) float32 of up to ``frames`` frames, of at least ``least`` unless a chunk ends; None: none yet.

        Raises what ended the speech, once all that came before it has been taken.
        """
        while self._live:
            utterance = self._live[0].utterance
            ended, ready = utterance.ended, utterance.ready_frames  # in this order: its end comes after its sound
            if ready >= least or (ended and ready):
                self._taken += min(frames, ready)
                self.usage.frames += min(frames, ready)
                return utterance.take(frames)
            if not ended:
                return None
            self._end_chunk()
        if self._failure is not None and self._end is None:
            self._fail()
            raise self._failure
        return None

    def close(self) -> None:
        """Stops what is being spoken; nothing happens to what has ended."""
        with self._lock:
            if self._end is None and not self.done:
                self._end = "cancelled"
        self.source.close()
        self._cancel()
        self._notify()

    def abandon(self) -> None:
        """Stops it, as ``close`` does, but takes no lock: for an object's end, which may come anywhere."""
        self._end = self._end or "cancelled"
        self._cancel()

    @property
    def _used_up(self) -> bool:
        """Whether the longest audio has been made."""
        most = self._planner.max_frames
        return most is not None and self.usage.frames >= most

    def _end_chunk(self) -> None:
        """Notes how the chunk that was being heard has ended."""
        chunk = self._live[0]
        try:
            outcome = chunk.utterance.outcome()
        except Exception as error:
            self._failure = error
            self._fail()
            raise
        self._live.popleft()
        self._codes.append(outcome.codes)
        self._taken = 0
        self.usage.characters += chunk.characters
        self.usage.cut = self.usage.cut or outcome.reason == "length"
        self._last_reason = outcome.reason
        if outcome.reason == "cancelled":
            self._end = self._end or "cancelled"

    def _fail(self) -> None:
        self._end = "error"
        self.source.close()
        self._cancel()

    def _cancel(self) -> None:
        for chunk in list(self._live):
            self._runner.cancel(chunk.utterance)
