"""What llama.cpp and ggml log: kept off standard error, and given to the thread that they log on.

They have one callback for the whole process. Ours stays set for good: if each use set and removed its own,
threads would remove each other's.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import llama_cpp.llama_cpp as llama

_ERROR = 4  # GGML_LOG_LEVEL_ERROR
_CONTINUED = 5  # GGML_LOG_LEVEL_CONT: goes on with the line before
_MOST_ERRORS = 20


class _Thread(threading.local):
    def __init__(self) -> None:
        self.handler: Callable[[str], None] | None = None
        self.errors: deque[str] = deque(maxlen=_MOST_ERRORS)
        self.level = 0


_thread = _Thread()


@llama.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, _user_data: object) -> None:
    line = text.decode("utf-8", "replace").strip()
    if _thread.handler is not None:
        _thread.handler(line)
        return
    _thread.level = level if level != _CONTINUED else _thread.level
    if _thread.level >= _ERROR and line:
        _thread.errors.append(line)


def listen() -> None:
    """Silences the log; call before any other use of llama.cpp."""
    llama.llama_log_set(_on_log, ctypes.c_void_p(0))


@contextmanager
def capture_log(handler: Callable[[str], None]) -> Iterator[None]:
    """Gives the lines that llama.cpp and ggml log on this thread to ``handler``."""
    listen()
    before, _thread.handler = _thread.handler, handler
    try:
        yield
    finally:
        _thread.handler = before


def last_errors() -> str:
    """The errors logged on this thread since the last call, as one line."""
    text = "; ".join(_thread.errors)
    _thread.errors.clear()
    return text or "llama.cpp gave no reason"
