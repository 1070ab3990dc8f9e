"""The prompt: text and context segments become frames, and frames become the backbone's input.

A frame is a row of K + 1 entries: K audio codes, then a text token; an entry that is not there is
``NO_ENTRY``. A text position holds its token alone, an audio position its K codes (SesameAILabs/csm,
``generator.py``).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..errors import InputError, ModelInvalid, PromptTooLong
from .normalise import normalise

if TYPE_CHECKING:
    from ..model.config import ModelConfig
    from ..options import Segment

NO_ENTRY = -1

Frames = NDArray[np.int32]


class PromptBuilder:
    """Turns text and context into frames, by the model's own tokenizer and template.

    ``template`` holds ``{text}`` and optionally ``{speaker}`` (or ``{speaker_id}``); the model's is used by
    default. Begin and end tokens are added, and may also be written out at the template's ends.
    """

    def __init__(self, config: ModelConfig, tokenizer_json: str, template: str | None = None) -> None:
        self._config = config
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # tokenizers raises plain Exception
            raise ModelInvalid(f"the model's tokenizer cannot be read: {error}") from error
        # A user's "<|end_of_text|>" is text to be read, not a command to the model.
        self._tokenizer.encode_special_tokens = True
        self._template = self._checked(template or config.prompt_template)

    def with_template(self, template: str) -> PromptBuilder:
        """The same builder with another template; the tokenizer is shared. Raises InputError."""
        other = copy.copy(self)
        other._template = self._checked(template)
        return other

    def _checked(self, template: str) -> str:
        if any("\ud800" <= c <= "\udfff" for c in template):
            raise InputError(f"the prompt template {template!r} is not text: write it in UTF-8")
        begin = self._tokenizer.id_to_token(self._config.bos_id) or ""
        end = self._tokenizer.id_to_token(self._config.eos_id) or ""
        bare = template.removeprefix(begin).removesuffix(end)
        if bare.count("{text}") != 1:
            raise InputError(f"the prompt template {template!r} must hold {{text}} exactly once")
        unknown = set(re.findall(r"\{\w*\}", bare)) - {"{text}", "{speaker}", "{speaker_id}"}
        if unknown:
            raise InputError(
                f"the prompt template {template!r} holds {', '.join(sorted(unknown))}:"
                " only {text}, {speaker} and {speaker_id} are known"
            )
        return bare

    def text_ids(self, text: str, speaker: int) -> list[int]:
        """Token ids of one text segment, begin and end tokens included."""
        if speaker < 0:
            raise InputError(f"speaker {speaker} is negative: speakers count from 0")
        before, after = self._template.split("{text}")
        name = str(speaker)
        parts = [p.replace("{speaker_id}", name).replace("{speaker}", name) for p in (before, after)]
        encoding = self._tokenizer.encode(parts[0] + normalise(text) + parts[1], add_special_tokens=False)
        unknown = [i for i in encoding.ids if i >= self._config.text_vocab]
        if unknown:
            raise ModelInvalid(
                f"the tokenizer gives token {unknown[0]}, but the model has {self._config.text_vocab} text"
                " embeddings: the tokenizer belongs to another model"
            )
        return [self._config.bos_id, *encoding.ids, self._config.eos_id]

    def text_frames(self, text: str, speaker: int) -> Frames:
        """Frames (T, K + 1) of one text segment."""
        ids = self.text_ids(text, speaker)
        frames = np.full((len(ids), self._config.codebooks + 1), NO_ENTRY, dtype=np.int32)
        frames[:, -1] = ids
        return frames

    def audio_frames(self, codes: NDArray[np.int32]) -> Frames:
        """Frames (F + 1, K + 1) of codes (F, K) and the frame that ends them."""
        k, vocab = self._config.codebooks, self._config.audio_vocab
        if codes.ndim != 2 or codes.shape[1] != k:
            raise InputError(f"context codes have the shape {codes.shape}, the model needs (frames, {k})")
        if codes.size and not (codes.min() >= 0 and codes.max() < vocab):
            raise InputError(f"context codes lie in {codes.min()}..{codes.max()}, the model has 0..{vocab - 1}")
        frames = np.full((len(codes) + 1, k + 1), NO_ENTRY, dtype=np.int32)
        frames[:-1, :k] = codes
        frames[-1, :k] = self._config.end_code
        return frames

    def context_frames(self, context: Sequence[Segment]) -> Frames:
        """Frames (T, K + 1) of what was said before: of each segment its text, its codes and the end."""
        parts = [np.empty((0, self._config.codebooks + 1), dtype=np.int32)]
        for segment in context:
            parts += [self.text_frames(segment.text, segment.speaker), self.audio_frames(segment.codes)]
        return np.concatenate(parts)

    def build(
        self, text: str, speaker: int, context: Sequence[Segment] = (), *, max_frames: int | None = None
    ) -> Frames:
        """Frames (T, K + 1) of the context segments and then the text to speak.

        Raises PromptTooLong when the prompt, or the prompt and ``max_frames`` of new speech, does not fit the
        backbone's positions; InputError for text with nothing to say.
        """
        own = self.text_frames(text, speaker)
        frames = np.concatenate([self.context_frames(context), own])
        self._check_length(len(frames), len(own), max_frames)
        return frames

    def _check_length(self, prompt: int, text: int, max_frames: int | None) -> None:
        positions = self._config.backbone.positions
        room = positions - prompt
        if room < (max_frames or 1):
            length = f"the prompt has {prompt} positions ({text} of text, {prompt - text} of context)"
            remedy = "shorten the text or the context, or speak it in chunks"
            if room > 0 and max_frames is not None:
                limit = int(room / self._config.frame_rate * 1000)
                remedy += f", or limit the speech to {limit} ms"
                length += f" and {max_frames} frames of speech were asked for"
            raise PromptTooLong(f"{length}, but the model has {positions}: {remedy}")
