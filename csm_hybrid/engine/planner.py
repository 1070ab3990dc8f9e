"""A whole speech: text of any length, spoken in chunks that continue one another.

Long text is cut into chunks where sentences end (:mod:`csm_hybrid.text.sentences`), each one utterance of the model.
What was said last is the context of what follows, so that voice and melody go on. The command line, the library and
the server all make their requests here, so that the same text, voice and seed give the same sound everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..defaults import LONGEST_CHUNK, LONGEST_TOKENS, LONGEST_UTTERANCE
from ..options import MAX_SEED, SpeechOptions
from ..text.sentences import speakable, split
from .request import Request, random_seed

if TYPE_CHECKING:
    from ..model.config import ModelConfig, Sampling
    from ..text.prompt import PromptBuilder

_SHORTEST_LIMIT = 30  # characters: no chunk has to be shorter than this
_TOLERANCE = 1.25  # how far a chunk may go beyond LONGEST_TOKENS, as single chunks differ from the text's average
_SAMPLE = 4096  # characters from which their number in a token is taken

# A prompt that leaves less room than this for its speech, in seconds, is refused.
_LEAST_ROOM = 2.0


class PromptModel(Protocol):
    """What a planner needs of a model (csm_hybrid.Model is one)."""

    config: ModelConfig

    def builder(self, template: str | None = None) -> PromptBuilder:
        """What makes prompts of texts."""

    def sampling(self, temperature: float | None = None, top_k: int | None = None) -> Sampling:
        """The settings given, completed by defaults."""

    def max_frames(self, seconds: float) -> int:
        """How many frames fit in a time."""


def context_room(model: PromptModel) -> int:
    """How many positions a voice's context may take: the longest chunk and its longest utterance fit after it."""
    chunk = LONGEST_TOKENS + len(model.builder().text_ids("a", 0))
    return model.config.backbone.positions - chunk - model.max_frames(LONGEST_UTTERANCE)


class ChunkPlanner:
    """Makes the requests of one speech, chunk by chunk.

    ``options.max_seconds`` bounds the whole speech; a chunk is also bounded by LONGEST_UTTERANCE, unless it is all
    there is. Chunk n is drawn with ``seed`` + n; a seed is made up when none is given. Raises InputError for options
    that break a rule of the model's.
    """

    def __init__(self, model: PromptModel, options: SpeechOptions) -> None:
        self.seed = random_seed() if options.seed is None else int(options.seed)
        self.max_frames = None if options.max_seconds is None else model.max_frames(options.max_seconds)
        self._longest = model.max_frames(LONGEST_UTTERANCE)
        self._least = model.max_frames(_LEAST_ROOM)
        self._positions = model.config.backbone.positions
        self._sampling = model.sampling(options.temperature, options.top_k)
        self._builder = model.builder(options.template)
        self._options = options
        self._context_rows = len(self._builder.context_frames(options.context)) if options.context else 0
        self._history = round(options.history * model.config.frame_rate)
        self._count = 0

    def chunks(self, text: str) -> list[str]:
        """The text in chunks of up to LONGEST_TOKENS tokens, about; none when there is nothing to say."""
        sample, longest = text.strip()[:_SAMPLE], LONGEST_CHUNK
        if speakable(sample):
            tokens = max(1, self._tokens(sample))
            longest = min(longest, max(_SHORTEST_LIMIT, len(sample) * LONGEST_TOKENS // tokens))
        return self._chunks(text, longest)

    def _chunks(self, text: str, longest: int) -> list[str]:
        """Chunks of up to ``longest`` characters, fewer where those are many more tokens than elsewhere."""
        chunks: list[str] = []
        for chunk in filter(speakable, split(text, longest)):
            tokens = self._tokens(chunk) if len(chunk) > _SHORTEST_LIMIT else 0
            shorter = max(_SHORTEST_LIMIT, len(chunk) * LONGEST_TOKENS // max(1, tokens))
            if tokens > LONGEST_TOKENS * _TOLERANCE and shorter < len(chunk):
                chunks += self._chunks(chunk, shorter)
            else:
                chunks.append(chunk)
        return chunks

    def _tokens(self, text: str) -> int:
        """Tokens of a text, without those of the template around it."""
        around = len(self._builder.text_ids("a", self._options.speaker)) - 1
        return len(self._builder.text_ids(text, self._options.speaker)) - around

    def request(self, chunk: str, *, alone: bool = False) -> Request:
        """The request for the next chunk; ``alone`` when there is no other.

        Raises PromptTooLong when the model has not room enough for it, InputError for text with nothing to say.
        """
        most, options = self._longest, self._options
        if self.max_frames is not None:
            most = self.max_frames if alone else min(most, self.max_frames)
        prompt = self._builder.build(chunk, options.speaker, options.context, max_frames=min(most, self._least))
        number, self._count = self._count, self._count + 1
        return Request(
            prompt,
            self._sampling,
            max_frames=min(most, max(1, self._positions - len(prompt))),
            seed=(self.seed + number) % (MAX_SEED + 1),
            context=self._context_rows,
            history=self._history,
            speech_frames=self.max_frames,
            pace=options.pace,
        )
