"""One speech, from text to samples: pieces of text, one utterance each, in one unbroken sound.

While a piece is being heard, the next one is made ahead (csm_hybrid.engine.planner tells what pieces are), or several
that are short: a fast listener thus finds no gap between them, a slow one never holds a slot idle, and what is
buffered for him stays below a few utterances.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ..engine.planner import ChunkPlanner, Speaker
from ..errors import InputError
from ..text.sentences import LONGEST_CHUNK
from .api_errors import invalid
from .request_schema import Manner
from .worker import Utterance, Worker

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..options import Segment

# Most samples handed on at once: two seconds.
_MOST_FRAMES = 25
# Most pieces that are made ahead.
_MOST_AHEAD = 4


class Voice(Speaker, Protocol):
    """What the server needs of a model (csm_hybrid.Model is one)."""

    @property
    def sample_rate(self) -> int:
        """Samples per second."""

    @property
    def engine(self) -> Engine:
        """The engine, for the one thread that owns it."""

    def segment(self, audio: Path, text: str | None = None, *, speaker: int = 0) -> Segment:
        """What a voice has said, from a recording and the transcript beside it."""

    def close(self) -> None:
        """Frees the model's memory."""


@dataclass
class Account:
    """What a speech has used and given so far; ``seed`` repeats it."""

    seed: int
    text_tokens: int = 0
    frames: int = 0
    characters: int = 0
    cut: bool = False  # whether any of its utterances was


@dataclass(frozen=True)
class _Spoken:
    """A piece on its way, and how long its text is."""

    utterance: Utterance
    characters: int


class Speech:
    """Speaks texts one after the other, in one manner. Close it to stop.

    ``whole`` tells that there will be one text only. Raises ApiError for a manner that breaks a rule.
    """

    def __init__(
        self, voice: Voice, worker: Worker, manner: Manner, history_seconds: float, *, whole: bool = False
    ) -> None:
        self._frame_samples = voice.config.codec.frame_samples
        self._worker = worker
        self._whole = whole
        try:
            self._passage = ChunkPlanner(
                voice,
                speaker=manner.speaker,
                context=manner.context,
                template=manner.template,
                temperature=manner.temperature,
                top_k=manner.top_k,
                seed=manner.seed,
                max_seconds=manner.max_seconds,
                history=history_seconds,
                pace=manner.speed,
            )
        except InputError as error:
            raise invalid(str(error), "tokenizer_template") from error
        self._live: list[_Spoken] = []  # submitted, and not yet taken to the end
        self._heard = asyncio.Event()  # set when one has been taken to its end
        self.account = Account(self._passage.seed)

    async def samples(self, texts: AsyncIterator[str]) -> AsyncGenerator[NDArray[np.int16]]:
        """Samples (n,) int16 of all texts, as they are made.

        Raises ApiError, InputError, QueueFull, WaitedTooLong, Ended and the engine's errors.
        """
        line: asyncio.Queue[_Spoken | None] = asyncio.Queue()
        feeding = asyncio.create_task(self._feed(texts, line))
        try:
            while (spoken := await line.get()) is not None:
                async for chunk in self._drain(spoken):
                    yield chunk
            await feeding
        finally:
            # Where it is not needed any more, its failure does not matter either.
            feeding.cancel()
            await asyncio.wait({feeding})
            _ = feeding.cancelled() or feeding.exception()
            self.close()

    def close(self) -> None:
        """Stops what is being spoken."""
        for spoken in self._live:
            self._worker.cancel(spoken.utterance)
        self._live.clear()

    async def _drain(self, spoken: _Spoken) -> AsyncGenerator[NDArray[np.int16]]:
        most = _MOST_FRAMES * self._frame_samples
        while (chunk := await spoken.utterance.take(most)) is not None:
            yield chunk
        self._live.remove(spoken)
        self._heard.set()
        outcome = spoken.utterance.outcome
        self.account.frames += outcome.frames
        self.account.characters += spoken.characters
        self.account.cut = self.account.cut or outcome.reason == "length"

    async def _feed(self, texts: AsyncIterator[str], line: asyncio.Queue[_Spoken | None]) -> None:
        """Submits the texts' pieces, each a little before it is needed, and puts them into ``line``, then None."""
        last: Utterance | None = None
        try:
            async for text in texts:
                # On another thread: a long text takes milliseconds to tokenise.
                pieces = await asyncio.to_thread(self._passage.pieces, text)
                for piece in pieces:
                    await self._room()
                    if self._used_up():
                        return
                    alone = self._whole and len(pieces) == 1
                    request = await asyncio.to_thread(self._passage.request, piece, alone=alone)
                    last = self._worker.submit(request, after=last)
                    self.account.text_tokens += len(request.prompt) - request.context
                    self._live.append(_Spoken(last, len(piece)))
                    line.put_nowait(self._live[-1])
        finally:
            line.put_nowait(None)

    def _used_up(self) -> bool:
        """Whether the longest audio has been made."""
        most = self._passage.most_frames
        return most is not None and self.account.frames >= most

    async def _room(self) -> None:
        """Waits until the next piece may be submitted: behind the one that is being heard, one piece of the longest
        kind is made ahead, or a few short ones.
        """
        while ahead := self._live[1:]:
            if len(ahead) < _MOST_AHEAD and sum(s.characters for s in ahead) < LONGEST_CHUNK // 2:
                return
            self._heard.clear()
            await self._heard.wait()
