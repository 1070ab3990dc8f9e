"""Text as a person types it, made into what the model was trained on."""

from __future__ import annotations

import unicodedata

from ..errors import InputError

# Invisible characters that are part of how words are spelt: Persian's and others' non-joiner, emoji's joiner.
_JOINERS = "\u200c\u200d"


def normalise(text: str) -> str:
    """One line in composed form (NFC) without control and format characters; white space becomes single spaces.

    Line breaks hurt CSM's speech, and letters with accents apart are other tokens. Characters that this Python does
    not know stay, so that text is the same with every version of it. Raises InputError when nothing is left to say.
    """
    kept = "".join(c for c in unicodedata.normalize("NFC", text) if c.isspace() or _stays(c))
    line = " ".join(kept.split())
    if not any(unicodedata.category(c)[0] in "LNS" for c in line):
        raise InputError(f"there is nothing to say in the text {text[:60]!r}: give at least one word")
    return line


def _stays(character: str) -> bool:
    return character in _JOINERS or unicodedata.category(character) not in ("Cc", "Cf", "Co", "Cs")
