"""Speech for the routes: an engine's handle, awaited."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ..audio.pcm import to_int16
from ..engine.planner import ChunkPlanner, PromptModel
from ..engine.speech_task import SpeechTask, Usage
from ..errors import InputError
from ..text.chunks import ChunkSource, WholeText
from .api_errors import invalid

if TYPE_CHECKING:
    from ..engine.prefix_cache import PrefixCache
    from ..engine.runner import Admission, Runner
    from ..options import Segment, SpeechOptions

# Frames handed on at once, at most: two seconds with CSM-1B.
_MAX_FRAMES = 25


class SpeechModel(PromptModel, Protocol):
    """What the server needs of a model (csm_hybrid.Model is one)."""

    runner: Runner
    prefixes: PrefixCache

    @property
    def sample_rate(self) -> int:
        """Samples per second."""

    def segment(self, audio: Path, text: str | None = None, *, speaker: int = 0) -> Segment:
        """A recording and the transcript beside it as context. Raises InputError."""

    def close(self) -> None:
        """Frees the model's memory."""


class Synthesis:
    """One speech, of one text. Raises ApiError for options that break a rule of the model's."""

    def __init__(self, model: SpeechModel, options: SpeechOptions, admission: Admission) -> None:
        self._runner = model.runner
        self._admission = admission
        try:
            self._planner = ChunkPlanner(model, options)
        except InputError as error:
            raise invalid(str(error), "tokenizer_template") from error
        self.usage = Usage(self._planner.seed)

    def chunks(self, text: str) -> list[str]:
        """A text in chunks; of a long one this takes milliseconds."""
        return self._planner.chunks(text)

    async def whole(self, text: str) -> ChunkSource:
        """The chunks of a text that is all there."""
        return WholeText(await asyncio.to_thread(self.chunks, text))

    async def samples(self, source: ChunkSource) -> AsyncGenerator[NDArray[np.int16]]:
        """Samples (n,) int16 of the text, as they are made.

        Raises InputError, QueueFull, WaitedTooLong, EngineClosed and the engine's other errors.
        """
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            with contextlib.suppress(RuntimeError):  # the event loop has closed: nobody waits any more
                loop.call_soon_threadsafe(news.set)

        task = SpeechTask(
            self._runner, self._planner, source, notify=notify, admission=self._admission, usage=self.usage
        )
        try:
            while True:
                news.clear()
                if task.due:
                    await asyncio.to_thread(task.advance)
                samples = task.take(_MAX_FRAMES)
                if samples is not None:
                    yield to_int16(samples)
                elif task.done:
                    return
                elif not task.due:
                    await news.wait()
        finally:
            task.close()
