"""A whole speech: text of any length, spoken in pieces that continue one another.

Long text is cut into pieces where sentences end (csm_hybrid.text.sentences), each one utterance of the model. What
was said last is the context of what follows, so that voice and melody go on. The command line, the library and the
server all make their requests here, so that the same text, voice and seed give the same sound everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ..errors import InputError
from ..text.sentences import LONGEST_CHUNK, speakable, split
from .request import Request, random_seed

if TYPE_CHECKING:
    from ..model.config import ModelConfig, Sampling
    from ..options import Segment
    from ..text.prompt import PromptBuilder

# The longest piece in tokens. With CSM-1B's tokenizer English reaches LONGEST_CHUNK characters first; other scripts
# take more tokens, and more time to say, for a character. The embedded voice, a token of which is a byte, was taught
# single sentences: of its first weights' words Whisper misheard 23 % in pieces of up to 80 characters, 80 % in pieces
# of 250.
LONGEST_TOKENS = 80
_SHORTEST_LIMIT = 30  # characters: no piece has to be shorter than this
_TOLERANCE = 1.25  # how far a piece may go beyond LONGEST_TOKENS, as single pieces differ from the text's average
_SAMPLE = 4096  # characters from which their number in a token is taken

# The longest utterance when nothing else is said, in seconds.
LONGEST_UTTERANCE = 30.0
# How much of what a speech has said is context for what follows in it, in seconds: CSM keeps its voice by it. More
# makes a steadier voice and a dearer prompt; small models lose the thread when it gets long.
DEFAULT_HISTORY = 15.0
# A prompt that leaves less room than this for its speech, in seconds, is refused.
_LEAST_ROOM = 2.0


class Speaker(Protocol):
    """What a planner needs of a model (csm_hybrid.Model is one)."""

    config: ModelConfig

    def builder(self, template: str | None = None) -> PromptBuilder:
        """What makes prompts of texts."""

    def sampling(self, temperature: float | None = None, top_k: int | None = None) -> Sampling:
        """The settings given, completed by defaults."""

    def max_frames(self, seconds: float) -> int:
        """How many frames fit in a time."""


def context_room(model: Speaker) -> int:
    """How many positions a voice's context may take: the longest piece and its longest utterance fit after it."""
    piece = LONGEST_TOKENS + len(model.builder().text_ids("a", 0))
    return model.config.backbone.positions - piece - model.max_frames(LONGEST_UTTERANCE)


class ChunkPlanner:
    """Makes the requests of one speech, piece by piece.

    ``max_seconds`` bounds the whole speech; a piece is also bounded by LONGEST_UTTERANCE, unless it is all there is.
    Piece n is drawn with ``seed`` + n; a seed is made up when none is given. ``pace`` is the speed at which it will
    be heard. Raises InputError for settings that break a rule.
    """

    def __init__(
        self,
        model: Speaker,
        *,
        speaker: int = 0,
        context: Sequence[Segment] = (),
        template: str | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        max_seconds: float | None = None,
        history: float = DEFAULT_HISTORY,
        pace: float = 1.0,
    ) -> None:
        if not 0 <= history < float("inf"):
            raise InputError(f"the history must be a time from 0 on, not {history} s")
        self.seed = random_seed() if seed is None else seed
        self.most_frames = None if max_seconds is None else model.max_frames(max_seconds)
        self._longest = model.max_frames(LONGEST_UTTERANCE)
        self._least = model.max_frames(_LEAST_ROOM)
        self._positions = model.config.backbone.positions
        self._sampling = model.sampling(temperature, top_k)
        self._builder = model.builder(template)
        self._speaker = speaker
        self._context = context
        self._context_rows = len(self._builder.context_frames(context)) if context else 0
        self._history = round(history * model.config.frame_rate)
        self._pace = pace
        self._count = 0

    def pieces(self, text: str) -> list[str]:
        """The text in pieces of up to LONGEST_TOKENS tokens, about; none when there is nothing to say."""
        sample, longest = text.strip()[:_SAMPLE], LONGEST_CHUNK
        if speakable(sample):
            tokens = max(1, self._tokens(sample))
            longest = min(longest, max(_SHORTEST_LIMIT, len(sample) * LONGEST_TOKENS // tokens))
        return self._pieces(text, longest)

    def _pieces(self, text: str, longest: int) -> list[str]:
        """Pieces of up to ``longest`` characters, fewer where those are many more tokens than elsewhere."""
        pieces: list[str] = []
        for piece in filter(speakable, split(text, longest)):
            tokens = self._tokens(piece) if len(piece) > _SHORTEST_LIMIT else 0
            shorter = max(_SHORTEST_LIMIT, len(piece) * LONGEST_TOKENS // max(1, tokens))
            if tokens > LONGEST_TOKENS * _TOLERANCE and shorter < len(piece):
                pieces += self._pieces(piece, shorter)
            else:
                pieces.append(piece)
        return pieces

    def _tokens(self, text: str) -> int:
        """Tokens of a text, without those of the template around it."""
        around = len(self._builder.text_ids("a", self._speaker)) - 1
        return len(self._builder.text_ids(text, self._speaker)) - around

    def request(self, piece: str, *, alone: bool = False) -> Request:
        """The request for the next piece; ``alone`` when there is no other.

        Raises PromptTooLong when the model has not room enough for it, InputError for text with nothing to say.
        """
        most = self._longest
        if self.most_frames is not None:
            most = self.most_frames if alone else min(most, self.most_frames)
        prompt = self._builder.build(piece, self._speaker, self._context, max_frames=min(most, self._least))
        number, self._count = self._count, self._count + 1
        return Request(
            prompt,
            self._sampling,
            max_frames=min(most, max(1, self._positions - len(prompt))),
            seed=(self.seed + number) % 2**63,
            context=self._context_rows,
            history=self._history,
            speech_frames=self.most_frames,
            pace=self._pace,
        )
