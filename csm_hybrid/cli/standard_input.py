"""Standard input as text, while it is still being written."""

from __future__ import annotations

import codecs
import os
import queue
import sys
import threading
from collections.abc import Iterator

from ..errors import InputError

_CHUNK = 65_536  # bytes of a read: what a pipe holds
_MOST_CHUNKS = 1024  # that wait to be taken: whoever writes without an end is not read without one


class StandardInput(Iterator[str]):
    """Standard input, UTF-8, read by a thread from the moment this is made; its text comes bit by bit.

    Raises InputError, when the text before it has been taken, for what cannot be read or is not UTF-8.
    """

    def __init__(self) -> None:
        self._chunks: queue.Queue[str | InputError | None] = queue.Queue(_MOST_CHUNKS)
        self._read_all = False
        self._taken_all = False
        threading.Thread(target=self._read, name="standard input", daemon=True).start()

    @property
    def typed(self) -> bool:
        """Whether it is a terminal."""
        return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()

    def text(self) -> str | Iterator[str]:
        """The whole text when it has ended by now, else this iterator."""
        return "".join(self) if self._read_all else self

    def __next__(self) -> str:
        chunk = None if self._taken_all else self._chunks.get()
        if isinstance(chunk, str):
            return chunk
        self._taken_all = True
        if chunk is None:
            raise StopIteration
        raise chunk

    def _read(self) -> None:
        end: InputError | None = None
        try:
            for text in _decoded():
                self._chunks.put(text)
        except InputError as error:
            end = error
        self._read_all = True
        self._chunks.put(end)


def _decoded() -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    read = 0  # bytes before this chunk
    while True:
        # Not through sys.stdin: its lock, held by a thread that waits, would stop the interpreter from ending.
        try:
            chunk = os.read(0 if sys.stdin is None else sys.stdin.fileno(), _CHUNK)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read standard input ({error}): send it the text, or give it as TEXT") from error
        held = len(decoder.getstate()[0])  # the beginning of a character whose end is still to come
        try:
            yield decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            where = f"byte {read - held + error.start} is 0x{error.object[error.start]:02x} ({error.reason})"
            raise InputError(
                f"standard input is not UTF-8: {where}; convert it first, as with iconv -t UTF-8"
            ) from error
        if not chunk:
            return
        read += len(chunk)
