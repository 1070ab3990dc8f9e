"""One speech, from text to samples: pieces of text, one utterance each, in one unbroken sound.

Text longer than an utterance should be is spoken in pieces (csm_hybrid.sentences). Each piece continues the one
before, with the last seconds that were said as its context, so that voice and melody go on. One piece is made ahead
while its predecessor is being heard; a slow listener thus never holds a slot idle, and what is buffered for him stays
below two utterances.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..streams import Request
from .errors import invalid
from .schema import Manner
from .worker import Outcome, Utterance, Worker

if TYPE_CHECKING:
    from ..engine import Engine
    from ..model.config import ModelConfig, Sampling
    from ..prompt import Frames, PromptBuilder

# The longest utterance when the request does not say, in seconds.
LONGEST_UTTERANCE = 30.0
# Most samples handed on at once: two seconds.
_MOST_FRAMES = 25
# A prompt that leaves less room than this for its speech, in seconds, is refused.
_LEAST_ROOM = 2.0


class Voice(Protocol):
    """What the server needs of a model (csm_hybrid.Model is one)."""

    config: ModelConfig

    @property
    def sample_rate(self) -> int:
        """Samples per second."""

    @property
    def engine(self) -> Engine:
        """The engine, for the one thread that owns it."""

    def builder(self, template: str | None = None) -> PromptBuilder:
        """What makes prompts of texts."""

    def sampling(self, temperature: float | None = None, top_k: int | None = None) -> Sampling:
        """The settings given, completed by defaults."""

    def max_frames(self, seconds: float) -> int:
        """How many frames fit in a time."""

    def close(self) -> None:
        """Frees the model's memory."""


@dataclass
class Account:
    """What a speech has used and given so far."""

    text_tokens: int = 0
    frames: int = 0
    characters: int = 0
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def seed(self) -> int | None:
        """The seed of the first utterance; given again, it repeats the speech."""
        return self.outcomes[0].seed if self.outcomes else None

    @property
    def reason(self) -> str:
        """How the speech ended: ``length`` when any of its utterances was cut."""
        return "length" if any(o.reason == "length" for o in self.outcomes) else "eos"


class Speech:
    """Speaks pieces of text one after the other, in one manner. Close it to stop."""

    def __init__(self, voice: Voice, worker: Worker, manner: Manner, history_seconds: float) -> None:
        self._voice = voice
        self._worker = worker
        self._manner = manner
        self._sampling = voice.sampling(manner.temperature, manner.top_k)
        try:
            self._builder = voice.builder(manner.template)
        except InputError as error:
            raise invalid(str(error), "tokenizer_template") from error
        self._history = round(history_seconds * voice.config.frame_rate)
        self._spoken = 0  # utterances submitted
        self._live: list[Utterance] = []
        self.account = Account()

    async def samples(self, pieces: AsyncIterator[str]) -> AsyncGenerator[NDArray[np.int16]]:
        """Samples (n,) int16 of all pieces, as they are made.

        Raises ApiError, InputError, QueueFull, WaitedTooLong, Ended and the engine's errors.
        """
        current = await self._next(pieces, None)
        try:
            while current is not None:
                following = asyncio.ensure_future(self._next(pieces, current))
                try:
                    async for chunk in self._drain(current):
                        yield chunk
                    current = await following
                finally:
                    # Where it is not needed any more, its failure does not matter either.
                    following.cancel()
                    await asyncio.wait({following})
                    _ = following.cancelled() or following.exception()
        finally:
            self.close()

    def close(self) -> None:
        """Stops what is being spoken."""
        for utterance in self._live:
            self._worker.cancel(utterance)
        self._live.clear()

    async def _drain(self, utterance: Utterance) -> AsyncGenerator[NDArray[np.int16]]:
        most = _MOST_FRAMES * self._voice.config.codec.frame_samples
        while (chunk := await utterance.take(most)) is not None:
            yield chunk
        self._live.remove(utterance)
        self.account.outcomes.append(utterance.outcome)
        self.account.frames += utterance.outcome.frames

    async def _next(self, pieces: AsyncIterator[str], after: Utterance | None) -> Utterance | None:
        """Submits the next piece; None when there is none, or no time left for it."""
        piece = await anext(pieces, None)
        if piece is None:
            return None
        limit = await self._limit(after)
        if limit == 0:
            return None
        # On another thread: a long text takes milliseconds to tokenise.
        prompt = await asyncio.to_thread(self._prompt, piece, limit)
        self.account.text_tokens += len(prompt)
        self.account.characters += len(piece)
        room = max(1, self._voice.config.backbone.positions - len(prompt))
        seed = self._manner.seed
        seed = None if seed is None else (seed + self._spoken) % 2**63
        request = Request(prompt, self._sampling, min(limit, room), seed, history=self._history)
        utterance = self._worker.submit(request, after=after)
        self._spoken += 1
        self._live.append(utterance)
        return utterance

    async def _limit(self, after: Utterance | None) -> int:
        """The most frames of the next utterance. A limit for the whole speech makes it wait for the one before."""
        seconds = self._manner.max_seconds
        if seconds is None:
            return self._voice.max_frames(LONGEST_UTTERANCE)
        total = self._voice.max_frames(seconds)
        if after is not None:
            await after.wait()
            if after.failed:
                return 0
            total -= self.account.frames + (after.outcome.frames if after in self._live else 0)
        return max(0, total)

    def _prompt(self, piece: str, limit: int) -> Frames:
        least = min(limit, self._voice.max_frames(_LEAST_ROOM))
        return self._builder.build(piece, self._manner.speaker, max_frames=least)
