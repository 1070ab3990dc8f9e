"""What an operator can set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..engine.planner import DEFAULT_HISTORY
from .request_schema import MAX_INPUT_CHARS


@dataclass(frozen=True)
class Settings:
    """The server's settings; times in seconds."""

    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    voices: Path | None = None  # the folder of the reference voices
    queue: int = 32  # requests that may wait for a slot
    queue_timeout: float = 30.0  # how long one may wait
    max_input_chars: int = MAX_INPUT_CHARS
    request_timeout: float = 600.0  # from arrival to the last byte
    stall_timeout: float = 60.0  # how long a reader may take nothing
    history: float = DEFAULT_HISTORY  # how much of what a speech has said is context for what follows in it
    shutdown_timeout: float = 30.0  # how long what runs may go on after SIGTERM
    body_timeout: float = 30.0  # how long a request's body may take to arrive
    slow_readers: int = 64  # speeches made and still being fetched, beyond those in slots and queue

    @property
    def max_body_bytes(self) -> int:
        """Twelve bytes for each character (JSON's longest escape) of the two texts, and room for the rest."""
        return 12 * (self.max_input_chars + MAX_INPUT_CHARS) + 65_536
