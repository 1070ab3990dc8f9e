"""A speech on its way: its sound in chunks, as they are made."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .engine.request import FinishReason, Stream

if TYPE_CHECKING:
    from .engine.planner import ChunkPlanner
    from .speech import Model
    from .text.chunks import Pieces


class SpeechStream(Iterator[NDArray[np.float32]]):
    """Chunks of an utterance as they are made; read ``finish_reason`` when they have ended.

    Every chunk is a float32 array (n,) in -1..1. Close it, leave its ``with`` block or drop it to stop early.
    """

    def __init__(self, model: Model, planner: ChunkPlanner, pieces: Pieces, buffer_frames: int) -> None:
        self._model = model
        self._passage = planner
        self._pieces = pieces
        self._buffer_frames = buffer_frames
        self._begin: float | None = None  # when the first piece was handed to the engine
        self._end: FinishReason | None = None  # what ended it from the outside
        self.first_audio_seconds: float | None = None
        self.text_seconds = 0.0  # spent waiting for text
        # Of the pieces whose audio has been taken: their characters, codes and frames, whether one was cut.
        self._characters = 0
        self._codes: list[NDArray[np.int32]] = []
        self._frames = 0
        self._cut = False
        self._stream: Stream | None = None  # the piece that is being heard
        self._following: Stream | None = None  # the one that waits behind it
        self._lengths: deque[int] = deque()  # the characters of these two
        if pieces.characters is not None:
            self._go_on()  # so that what is wrong with a whole text is told at once

    def __next__(self) -> NDArray[np.float32]:
        while (audio := self._heard()) is None:
            if self._end is not None or not self._go_on():
                self._pieces.close()
                raise StopIteration
        if self.first_audio_seconds is None and self._begin is not None:
            self.first_audio_seconds = time.perf_counter() - self._begin
        return audio

    def _heard(self) -> NDArray[np.float32] | None:
        """The next chunk of the piece that is being heard; None at its end."""
        stream = self._stream
        if stream is None:
            return None
        while not stream.finished and len(stream.audio) < self._buffer_frames:
            self._line_up()
            self._model._step_for(stream)
        if stream.error is not None:
            raise stream.error
        if not stream.audio:
            return None
        count = min(len(stream.audio), self._buffer_frames)
        return np.concatenate([stream.audio.popleft() for _ in range(count)])

    def _line_up(self, *, wait: bool = False) -> None:
        """Has the next piece wait behind the one that is being heard, when its text is there."""
        if self._following is not None or self._full:
            return
        try:
            piece = self._pieces.take(wait=wait)
            if piece is None:
                return
            request = self._passage.request(piece, alone=self._pieces.alone)
        except Exception:
            self._end = "error"
            raise
        self._begin = self._begin or time.perf_counter()
        self._following = self._model._submit(request, self._stream)
        self._lengths.append(len(piece))

    def _go_on(self) -> bool:
        """Turns to the next piece, whose text it waits for; False when there is none."""
        begin = time.perf_counter()
        try:
            self._line_up(wait=True)
        finally:
            self.text_seconds += time.perf_counter() - begin
        if self._following is None:
            return False
        if self._stream is not None:
            self._characters += self._lengths.popleft()
            self._codes.append(self._codes_of(self._stream))
            self._frames += self._stream.frames
            self._cut = self._cut or self._stream.finish_reason == "length"
        self._stream, self._following = self._following, None
        self._line_up()
        return True

    @property
    def _full(self) -> bool:
        """Whether the longest audio has been made."""
        most = self._passage.most_frames
        return most is not None and self.frames >= most

    def __enter__(self) -> SpeechStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops the utterance; does nothing when it has ended."""
        if self.finish_reason is None:
            self._end = "cancelled"
        self._pieces.close()
        for stream in self._submitted:
            self._model._cancel(stream)

    def __del__(self) -> None:
        # Nobody will hear the rest. At any point of any thread, so that the engine hears of it later.
        if hasattr(self, "_following"):
            self._pieces.close()
            for stream in self._submitted:
                self._model._abandon(stream)

    @property
    def _submitted(self) -> list[Stream]:
        """What the engine may still be working on."""
        return [s for s in (self._stream, self._following) if s is not None]

    @property
    def finish_reason(self) -> FinishReason | None:
        """``eos`` (the model ended the speech), ``length``, ``cancelled``, ``error``; None while it runs."""
        reason = None if self._stream is None else self._stream.finish_reason
        if self._end is not None or reason in ("cancelled", "error"):
            return self._end or reason
        if reason is None or self._following is not None or not (self._pieces.ended or self._full):
            return None
        return "length" if self._cut else reason

    @property
    def frames(self) -> int:
        """Frames made so far."""
        return self._frames + (0 if self._stream is None else self._stream.frames)

    @property
    def share(self) -> float | None:
        """The share of the text whose pieces have been spoken, 0 to 1; None of a text that is being written."""
        if self._pieces.characters is None:
            return None
        return 1.0 if self.finish_reason in ("eos", "length") else self._characters / self._pieces.characters

    @property
    def seed(self) -> int:
        """The seed in use; given again, it repeats the speech exactly."""
        return self._passage.seed

    @property
    def codes(self) -> NDArray[np.int32]:
        """The codes made so far, (F, K) int32."""
        return np.concatenate([*self._codes, self._codes_of(self._stream)])

    def _codes_of(self, stream: Stream | None) -> NDArray[np.int32]:
        codes = [] if stream is None else stream.codes
        return np.array(codes, dtype=np.int32).reshape(-1, self._model.config.codebooks)
