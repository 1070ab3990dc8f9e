"""The chunks of a speech, one after the other: of a text that is whole, or of one that is still being written.

A whole text is cut with all of it in view, into as few chunks as can be. Of a text that is still being written, each
sentence is a chunk as soon as it is whole (:class:`~.sentences.SentenceSplitter`); so the chunks do not depend on
when its parts come, nor on where they are cut.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from ..errors import InputError
from .sentences import SentenceSplitter

Notify = Callable[[], None]

# Most sentences of a text that is being written that wait to be spoken; then no more of it is read for a while.
MOST_WAITING = 16


class ChunkSource(Protocol):
    """What a speech takes its chunks from. Nothing in it waits; ``watch`` tells when there is more to take."""

    characters: int | None  # of all chunks together; None when the text is not known yet
    alone: bool  # whether there is but one chunk

    @property
    def ready(self) -> bool:
        """Whether ``take`` has something to give, or to raise."""

    @property
    def ended(self) -> bool:
        """Whether the last chunk has been taken."""

    def watch(self, notify: Notify) -> None:
        """Calls ``notify``, on any thread, whenever there may be more to take."""

    def take(self) -> str | None:
        """The next chunk, or None when there is none now. Raises what the text's source raised."""

    def close(self) -> None:
        """No more will be taken."""


class WholeText:
    """The chunks of a text that is all there."""

    def __init__(self, chunks: Sequence[str]) -> None:
        self.characters: int | None = sum(map(len, chunks))
        self.alone = len(chunks) == 1
        self._left = deque(chunks)

    @property
    def ready(self) -> bool:
        """Whether there is another chunk."""
        return bool(self._left)

    @property
    def ended(self) -> bool:
        """Whether the last chunk has been taken."""
        return not self._left

    def watch(self, notify: Notify) -> None:
        """Everything is there from the start."""

    def take(self) -> str | None:
        """The next chunk, or None."""
        return self._left.popleft() if self._left else None

    def close(self) -> None:
        """Nothing is held."""


class GrowingText:
    """The chunks of a text that is still being written: ``feed`` it from one thread, ``take`` from another.

    ``cut`` makes chunks of a sentence, when it is taken. What ``fail`` is given, ``take`` raises when what came
    before has been taken. With ``must_speak``, a text without a word in it ends in one empty chunk, which cannot be
    spoken.
    """

    characters: int | None = None
    alone = False

    def __init__(self, cut: Callable[[str], list[str]], *, must_speak: bool = False) -> None:
        self.complete = False  # takes no more text
        self.waiting_characters = 0  # of whole sentences that have not been taken
        self._cut = cut
        self._silent = must_speak  # nothing has been said that had to be
        self._splitter = SentenceSplitter()
        self._sentences: deque[str] = deque()
        self._chunks: deque[str] = deque()  # of the sentence that was taken last
        self._failure: BaseException | None = None
        self._notify: Notify = lambda: None
        self._changed = threading.Condition()

    @property
    def ready(self) -> bool:
        """Whether there is a chunk, a failure or the end to be taken."""
        return bool(self._chunks or self._sentences) or (self.complete and not self.ended)

    @property
    def ended(self) -> bool:
        """Whether the last chunk has been taken."""
        left = self._chunks or self._sentences or self._silent or self._failure is not None
        return self.complete and not left

    def watch(self, notify: Notify) -> None:
        """See :class:`ChunkSource`."""
        self._notify = notify

    def feed(self, text: str) -> None:
        """More text, cut anywhere."""
        self._add(self._splitter.feed(text))

    def finish(self) -> None:
        """The text is complete."""
        if not self.complete:
            self._add(self._splitter.flush(), complete=True)

    def fail(self, failure: BaseException) -> None:
        """The text breaks off; a sentence that is not whole is not spoken."""
        self._failure = failure
        self._add([], complete=True)

    def close(self) -> None:
        """No more is taken: what is left is dropped."""
        with self._changed:
            self._sentences.clear()
            self._chunks.clear()
            self._failure, self._silent, self.waiting_characters = None, False, 0
        self._add([], complete=True)

    def wait_for_room(self) -> bool:
        """Waits while MOST_WAITING sentences wait to be spoken; whether more text can be taken at all."""
        with self._changed:
            self._changed.wait_for(lambda: self.complete or len(self._sentences) < MOST_WAITING)
            return not self.complete

    def take(self) -> str | None:
        """See :class:`ChunkSource`."""
        while not self._chunks:
            with self._changed:
                if not self._sentences:
                    break
                sentence = self._sentences.popleft()
                self.waiting_characters -= len(sentence)
                self._changed.notify_all()
            self._chunks.extend(self._cut(sentence))
        if self._chunks:
            self._silent = False
            return self._chunks.popleft()
        if not self.complete or self._sentences:
            return None
        failure, self._failure = self._failure, None
        silent, self._silent = self._silent, False
        if failure is not None:
            raise failure
        return "" if silent else None

    def _add(self, sentences: list[str], *, complete: bool = False) -> None:
        with self._changed:
            if not self.complete:
                self._sentences.extend(sentences)
                self.waiting_characters += sum(map(len, sentences))
            self.complete = self.complete or complete
            self._changed.notify_all()
        self._notify()


def read_into(text: GrowingText, parts: Iterable[str]) -> None:
    """Feeds a text from an iterable of strings, on a thread of its own, as fast as it is spoken.

    What the iterable raises becomes the text's failure, as does a part that is not a string (InputError).
    """

    def read() -> None:
        try:
            for part in parts:
                if not isinstance(part, str):
                    raise InputError(f"a text must come as a string or in strings, not in {type(part).__name__}")
                text.feed(part)
                if not text.wait_for_room():
                    return
            text.finish()
        except BaseException as error:  # whatever it is, it is for whoever takes the text
            text.fail(error)

    threading.Thread(target=read, name="text", daemon=True).start()
