"""The voices that requests may name: OpenAI's names, and those of the recordings that the operator gives.

CSM tells speakers apart by number, and was trained on conversations of two: 0 and 1. OpenAI's names take these two in
turn, in the order in which OpenAI lists them; a plain number is that speaker. A speaker sounds different at every
request; a voice with a recording as its context stays the same, and may take one of OpenAI's names.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..audio.references import find_voices
from ..engine.planner import ChunkPlanner
from ..errors import InputError
from ..options import SpeechOptions
from .api_errors import invalid

if TYPE_CHECKING:
    from ..options import Segment
    from .synthesis import SpeechModel

log = logging.getLogger("csm_hybrid.server")

# The order of OpenAI's specification.
OPENAI_VOICES = (
    "alloy",
    "ash",
    "ballad",
    "coral",
    "echo",
    "fable",
    "onyx",
    "nova",
    "sage",
    "shimmer",
    "verse",
    "marin",
    "cedar",
)
_SPEAKERS = {name: i % 2 for i, name in enumerate(OPENAI_VOICES)}
HIGHEST_SPEAKER = 9999
NUMBER = r"^[0-9]{1,4}$"  # what a speaker's number looks like
_NAME = re.compile(r"\w([\w .-]*\w)?")  # accents and vowel signs aside
_LONGEST_NAME = 64
# The speaker of a recording and of what follows it: any number will do, as long as both have the same.
_REFERENCE_SPEAKER = 0


class Voices:
    """What requests may name as their voice, and what each name stands for."""

    def __init__(self, references: Mapping[str, Segment] | None = None) -> None:
        self._references = dict(references or {})

    @property
    def names(self) -> tuple[str, ...]:
        """All names, the operator's first; speakers' numbers are taken besides."""
        return (*self._references, *(name for name in OPENAI_VOICES if name not in self._references))

    def find(self, name: str, speaker: int | None = None) -> tuple[int, Sequence[Segment]]:
        """A voice's speaker, or ``speaker`` in its place, and its context. Raises ApiError for an unknown name."""
        name = unicodedata.normalize("NFC", name)
        if (segment := self._references.get(name)) is not None:
            number = segment.speaker if speaker is None else speaker
            return number, (replace(segment, speaker=number),)
        if name not in _SPEAKERS and not re.fullmatch(NUMBER, name):
            known = ", ".join(self.names)
            message = f"there is no voice {name[:60]!r}: take one of {known}, or a speaker's number"
            raise invalid(message, "voice", "voice_not_found")
        if speaker is None:
            speaker = _SPEAKERS[name] if name in _SPEAKERS else int(name)
        return speaker, ()


def load_voices(model: SpeechModel, folder: Path) -> Voices:
    """The voices of a folder (see ``csm_hybrid.audio.references``), encoded, and their keys and values computed, now.

    Raises InputError for the first bad one.
    """
    kept = model.prefixes if model.prefixes.limit > 0 else None
    references = {}
    for name, path in find_voices(folder).items():
        if not _is_name(name):
            raise InputError(
                f"{path} cannot be a voice's name: give it up to 64 letters, digits, spaces, dots, - and _,"
                " and not only digits, which are a speaker's number"
            )
        begin = time.perf_counter()
        segment = model.segment(path, speaker=_REFERENCE_SPEAKER)
        references[name] = segment
        if kept is not None:
            _warm_up(model, segment)
        fields = {
            "voice": name,
            "seconds": round(len(segment.codes) / model.config.frame_rate, 2),
            "took_s": round(time.perf_counter() - begin, 2),
        }
        log.info("voice", extra={"fields": fields})
    if kept is not None and len(kept) < len(references):
        log.warning(
            "--voice-cache %d holds %d of %d voices: the first words of the others come later",
            kept.limit // 2**20,
            len(kept),
            len(references),
        )
    return Voices(references)


def _is_name(name: str) -> bool:
    """Whether a voice may have a name. Accents and vowel signs count as part of their letter."""
    letters = "".join(c for c in name if not unicodedata.category(c).startswith("M"))
    plain = _NAME.fullmatch(letters) and letters[0] == name[0]
    return bool(plain) and len(name) <= _LONGEST_NAME and not re.fullmatch(NUMBER, name)


def _warm_up(model: SpeechModel, segment: Segment) -> None:
    """Speaks a frame with a voice, so that even its first request finds its keys and values in the prefix cache."""
    frame = 1 / model.config.frame_rate
    options = SpeechOptions(speaker=segment.speaker, context=[segment], max_seconds=frame)
    done = threading.Event()
    request = ChunkPlanner(model, options).request("Hello.", alone=True)
    utterance = model.runner.submit(request, notify=done.set)
    while not utterance.ended:
        done.wait()
        done.clear()
    utterance.outcome()
