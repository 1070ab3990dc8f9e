"""The pieces of a speech, one after the other: of a text that is whole, or of one that is still being written.

A whole text is cut with all of it in view: into as few pieces as can be (``ChunkPlanner.pieces``). Of a text that
is still being written, each sentence is a piece as soon as it is whole (``sentences.SentenceSplitter``), as on the
server's WebSocket; so the pieces do not depend on when its parts come, nor on where they are cut.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from ..errors import InputError
from .sentences import SentenceSplitter

# Most pieces of a text that is being written that wait to be spoken; then no more of it is read for a while.
_MOST_WAITING = 16


class Pieces(Protocol):
    """What a speech takes its pieces from."""

    characters: int | None  # of all pieces together; None when the text is not known yet
    alone: bool  # whether there is but one piece

    @property
    def ended(self) -> bool:
        """Whether the last piece has been taken."""

    def take(self, *, wait: bool) -> str | None:
        """The next piece; None when there is none, or, without ``wait``, none yet."""

    def close(self) -> None:
        """No more will be taken."""


class WholeText:
    """The pieces of a text that is all there."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self.characters: int | None = sum(map(len, pieces))
        self.alone = len(pieces) == 1
        self._pieces = pieces
        self._taken = 0

    @property
    def ended(self) -> bool:
        """Whether the last piece has been taken."""
        return self._taken == len(self._pieces)

    def take(self, *, wait: bool) -> str | None:
        """The next piece, or None."""
        if self.ended:
            return None
        self._taken += 1
        return self._pieces[self._taken - 1]

    def close(self) -> None:
        """Nothing is held."""


class GrowingText:
    """The sentences of a text that is still being written, each as soon as it is whole.

    A thread of its own waits for ``texts``, so that speech goes on meanwhile; ``cut`` makes pieces of a sentence.
    What ``texts`` raises, ``take`` raises when what came before has been taken. When there was nothing to say, the
    last piece is that nothing.
    """

    characters: int | None = None
    alone = False

    def __init__(self, texts: Iterable[str], cut: Callable[[str], list[str]]) -> None:
        self.ended = False
        self._cut = cut
        self._line: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(_MOST_WAITING)
        self._closed = False
        threading.Thread(target=self._read, args=(texts,), name="text", daemon=True).start()

    def take(self, *, wait: bool) -> str | None:
        """The next piece; None when there is none, or, without ``wait``, none yet.

        Raises, only with ``wait``, InputError for parts that are not strings, and what the text's source raised.
        """
        if self.ended or (not wait and self._line.empty()):
            return None
        item = self._line.get()
        if isinstance(item, str):
            self._room.release()
            return item
        if isinstance(item, BaseException) and not wait:
            self._line.put(item)  # there is none behind it
            return None
        self.ended = True
        if item is not None:
            raise item
        return None

    def close(self) -> None:
        """Nothing more is read after the part that is being waited for, and nobody waits any more."""
        self.ended = self._closed = True
        self._room.release()
        self._line.put(None)

    def _read(self, texts: Iterable[str]) -> None:
        splitter = SentenceSplitter()
        said = False
        try:
            for text in texts:
                if not isinstance(text, str):
                    raise InputError(f"a text must come as a string or in strings, not in {type(text).__name__}")
                said |= self._put(splitter.feed(text))
                if self._closed:
                    return
            if not self._put(splitter.flush()) and not said:
                self._line.put("")
            self._line.put(None)
        except BaseException as error:  # whatever it is, it is for the one who waits
            self._line.put(error)

    def _put(self, sentences: list[str]) -> bool:
        """Hands on the pieces of sentences, when there is room for them; whether there were any."""
        pieces = [piece for sentence in sentences for piece in self._cut(sentence)]
        for piece in pieces:
            self._room.acquire()
            if self._closed:
                break
            self._line.put(piece)
        return bool(pieces)
