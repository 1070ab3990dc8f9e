"""Text normalisation."""

from __future__ import annotations

import pytest

from csm_hybrid.errors import InputError
from csm_hybrid.text.normalise import normalise


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("Hello.", "Hello."),
        ("  one\ntwo\r\n\tthree  ", "one two three"),
        ("zero\u200bwidth\x00 and \ufeffmarks", "zerowidth and marks"),
        ("no\u00a0break\u2003space", "no break space"),
        ("42", "42"),
        ("日本語です", "日本語です"),
        ("cafe\u0301", "caf\u00e9"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("👩\u200d👧", "👩\u200d👧"),
        ("new \U0001fae9 face \U0010ffff", "new \U0001fae9 face \U0010ffff"),
        ("lone \ud800 half, private \ue000 use", "lone half, private use"),
    ],
)
def test_white_space_and_control_characters(typed: str, kept: str) -> None:
    assert normalise(typed) == kept


@pytest.mark.parametrize("empty", ["", " \n", "...", "\u200b", "?!", "\x00"])
def test_nothing_to_say_is_an_error(empty: str) -> None:
    with pytest.raises(InputError, match="nothing to say"):
        normalise(empty)
