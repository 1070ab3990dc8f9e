"""Text as a person types it, made into what the model was trained on."""

from __future__ import annotations

import unicodedata

from .errors import InputError


def normalise(text: str) -> str:
    """One line without control characters: every run of white space becomes one space.

    Line breaks hurt CSM's speech. Raises InputError when nothing is left to say.
    """
    kept = "".join(c if c.isspace() or unicodedata.category(c)[0] != "C" else "" for c in text)
    line = " ".join(kept.split())
    if not any(unicodedata.category(c)[0] in "LNS" for c in line):
        raise InputError(f"there is nothing to say in the text {text[:60]!r}: give at least one word")
    return line
