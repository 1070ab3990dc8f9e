"""Voice names. CSM tells speakers apart by number, and was trained on talks of two: 0 and 1.

OpenAI's names take these two in turn, in the order in which OpenAI lists them; a plain number is that speaker.
"""

from __future__ import annotations

from .errors import ApiError, invalid

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


def speaker_of(voice: str) -> int:
    """The speaker's number for a voice name. Raises ApiError for a name that is not known."""
    if voice in _SPEAKERS:
        return _SPEAKERS[voice]
    if voice.isascii() and voice.isdigit() and len(voice) <= len(str(HIGHEST_SPEAKER)):
        return int(voice)
    raise _unknown(voice)


def _unknown(voice: str) -> ApiError:
    names = ", ".join(OPENAI_VOICES)
    return invalid(
        f"there is no voice {voice[:60]!r}: take one of {names}, or a speaker's number", "voice", "voice_not_found"
    )
