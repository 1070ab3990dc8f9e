"""A speech on its way: its sound as it is made, for whoever iterates over it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from .engine.speech_task import SpeechTask

if TYPE_CHECKING:
    from .engine.planner import ChunkPlanner
    from .engine.request import FinishReason
    from .engine.runner import Runner
    from .model.config import ModelConfig
    from .text.chunks import ChunkSource


class SpeakingModel(Protocol):
    """What a stream needs of a model (csm_hybrid.Model is one); it keeps it alive."""

    config: ModelConfig
    runner: Runner


class SpeechStream(Iterator[NDArray[np.float32]]):
    """The samples of a speech as they are made; read ``finish_reason`` when they have ended.

    Every item is a float32 array (n,) in -1..1. Close it, leave its ``with`` block or drop it to stop early.
    """

    def __init__(self, model: SpeakingModel, planner: ChunkPlanner, source: ChunkSource, buffer_frames: int) -> None:
        self.first_audio_seconds: float | None = None  # after its first chunk was handed to the engine
        self.text_seconds = 0.0  # spent waiting for text
        self._model = model
        self._source = source
        self._buffer_frames = buffer_frames
        self._news = threading.Event()
        self._begin: float | None = None  # when the first chunk was handed to the engine
        self._task = SpeechTask(model.runner, planner, source, notify=self._news.set)
        if source.characters is not None:  # so that what is wrong with a whole text is told at once
            self._advance()
            self._task.take(0)

    def __next__(self) -> NDArray[np.float32]:
        task = self._task
        while True:
            self._news.clear()
            self._advance()
            samples = task.take(self._buffer_frames, least=self._buffer_frames)
            if samples is not None:
                if self.first_audio_seconds is None and self._begin is not None:
                    self.first_audio_seconds = time.perf_counter() - self._begin
                return samples
            if task.due:
                continue
            if task.done:
                raise StopIteration
            begin, for_text = time.perf_counter(), task.waits_for_text
            self._news.wait()
            if for_text:
                self.text_seconds += time.perf_counter() - begin

    def _advance(self) -> None:
        if self._task.due:
            self._begin = self._begin or time.perf_counter()
            self._task.advance()

    def __enter__(self) -> SpeechStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops the speech; does nothing when it has ended."""
        self._task.close()

    def __del__(self) -> None:
        if hasattr(self, "_task"):  # nobody will hear the rest
            self._task.abandon()

    @property
    def finish_reason(self) -> FinishReason | None:
        """``eos`` (the model ended the speech), ``length``, ``cancelled``, ``error``; None while it runs."""
        return self._task.finish_reason

    @property
    def frames(self) -> int:
        """Frames given so far."""
        return self._task.usage.frames

    @property
    def share(self) -> float | None:
        """The share of the text whose chunks have been spoken, 0 to 1; None of a text that is being written."""
        if self._source.characters is None:
            return None
        if self.finish_reason in ("eos", "length"):
            return 1.0
        return self._task.usage.characters / self._source.characters

    @property
    def seed(self) -> int:
        """The seed in use; given again, it repeats the speech exactly."""
        return self._task.usage.seed

    @property
    def codes(self) -> NDArray[np.int32]:
        """The codes of the frames given so far, (F, K) int32."""
        return self._task.codes(self._model.config.codebooks)
