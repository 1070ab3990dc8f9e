"""Long text in chunks: sentence by sentence, whole or as it is being written.

A chunk is one utterance of the model. Its context holds some two minutes, but speech drifts and runs away long
before that, so text is spoken in chunks of a few sentences.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from ..defaults import LONGEST_CHUNK

# The shortest chunk that is spoken before the text after it is known: a bare "Yes." or "1." gives the model too
# little to go on.
SHORTEST_CHUNK = 10

# A line at least this long, in characters, was broken to fit a width: its sentence goes on in the next one.
_WRAPPED = 45
_ITEM = re.compile(r"\s*(?:[-*•–—]|\d{1,3}[.)])\s")  # the beginning of an item of a list

_MARKS = ".!?…।؟۔"
_CLOSING = "\"'”’»)]}"
# An end mark with the quotes and brackets that close after it, then white space; CJK marks need no space.
_END = re.compile(rf"[{_MARKS}]+[{re.escape(_CLOSING)}]*(?=\s)|[。！？]+[{re.escape(_CLOSING)}」』）]*|\n")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'“])(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|No|Vol|Fig|e\.g|i\.e|cf|approx|Ph\.D|(?:[A-Za-z]\.)*[A-Za-z])\.$|^\s*\d{1,3}\.$",
    re.IGNORECASE,
)
_WEAK_BREAK = re.compile(r"[,;:–—、，；：](?=\s|$)|\s[–—-](?=\s)")


def speakable(text: str) -> bool:
    """Whether there is anything to say: a letter, a digit or a symbol."""
    return any(unicodedata.category(c)[0] in "LNS" for c in text)


def split(text: str, longest: int = LONGEST_CHUNK) -> list[str]:
    """Chunks of at most ``longest`` characters that end where sentences do, as few as can be; their words are
    the text's. Text that fits is one chunk, as it stands. What ends without a mark, as headings do, ends its chunk.
    """
    if len(text) <= longest:
        return [text]
    splitter = SentenceSplitter(longest)
    sentences = []
    for line in _unwrapped(text):
        sentences += splitter.feed(line + "\n")
    sentences = [s for s in (*sentences, *splitter.flush()) if speakable(s)] or [text[:longest]]
    chunks = sentences[:1]
    for sentence in sentences[1:]:
        joined = f"{chunks[-1]} {sentence}"
        if len(joined) <= longest and not chunks[-1][-1].isalnum():
            chunks[-1] = joined
        else:
            chunks.append(sentence)
    return chunks


def _unwrapped(text: str) -> Iterator[str]:
    """The lines of a text, each whole again where it was broken to fit a width."""
    parts: list[str] = []
    for line in text.splitlines():
        if parts and (len(parts[-1]) < _WRAPPED or not line.strip() or _ITEM.match(line)):
            yield " ".join(parts)
            parts = []
        parts.append(line.rstrip())
    yield " ".join(parts)


class SentenceSplitter:
    """Takes text in any bits and gives each sentence as soon as it is known to be whole."""

    def __init__(self, longest: int = LONGEST_CHUNK) -> None:
        self._longest = longest
        self._text = ""
        self._searched = 0  # no sentence ends before here

    def feed(self, text: str) -> list[str]:
        """Adds text; returns the sentences that it completes, in order."""
        self._text += text
        done: list[str] = []
        at = 0
        while (cut := self._find_cut(self._text[at : at + self._longest + 1])) is not None:
            done.append(self._text[at : at + cut].strip())
            at, self._searched = at + cut, 0
        self._text = self._text[at:]
        return done

    def flush(self) -> list[str]:
        """What is left, as the last sentence; nothing when it holds nothing to say."""
        chunk, self._text, self._searched = self._text.strip(), "", 0
        return [chunk] if speakable(chunk) else []

    def _find_cut(self, text: str) -> int | None:
        """Where the first whole sentence of ``text`` ends, or where one that is too long is best broken.

        ``text`` is what comes next, one character more than the longest sentence at most.
        """
        for match in _END.finditer(text, self._searched):
            if match.end() > self._longest:
                break
            head = text[: match.end()]
            long_enough = len(head.strip()) >= SHORTEST_CHUNK and speakable(head)
            if long_enough and (match.group() == "\n" or not _ABBREVIATION.search(head)):
                return match.end()
            self._searched = match.end()
        if len(text) <= self._longest:
            # An end mark at the very end may still get company (".." or a quote), so it is looked at again.
            self._searched = max(self._searched, len(text.rstrip(_CLOSING + _MARKS + "。！？")) - 1, 0)
            return None
        head = text[: self._longest]
        weak = [m.end() for m in _WEAK_BREAK.finditer(head) if m.end() > self._longest // 3]
        space = max(head.rfind(c) for c in " \t\n")
        cut = weak[-1] if weak else space if space > 0 else self._longest
        return cut if speakable(head[:cut]) else self._longest
