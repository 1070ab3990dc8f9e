"""What an operator can set: defaults, limits and help, from which ``csm-hybrid serve`` takes its options."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..options import SpeechOptions, check, option, option_of

MAX_INPUT_CHARS = 4096  # OpenAI's


@dataclass(frozen=True)
class Settings:
    """The server's settings; times in seconds. Raises InputError for a value that breaks its rule."""

    host: str = option("127.0.0.1", "The address to listen on; 0.0.0.0 for all.")
    port: int = option(
        8080, "The port; 0 takes a free one.", "the port must lie in 0..65535", low=0, high=65535, whole=True
    )
    api_keys: tuple[str, ...] = option(
        (),
        "A key that requests must bring; give several times for several keys, in the environment separated by spaces."
        " Without one, none is asked for.",
    )
    voices: Path | None = option(
        None,
        "A folder of voices: a recording of each, such as anna.wav, and in anna.txt what it says. A name of OpenAI's,"
        " as in alloy.wav, makes that voice this one.",
    )
    queue: int = option(
        32, "Requests that may wait for a slot.", "the queue must be at least 0 requests", low=0, whole=True
    )
    queue_timeout: float = option(
        30.0,
        "Seconds that a request may wait for a slot.",
        "the queue's timeout must be a positive time",
        low=0,
        open_low=True,
        unit=" s",
    )
    cors_origins: tuple[str, ...] = option(
        (),
        "An origin whose web pages may use the server, such as https://example.org, or *; give several times for"
        " several.",
    )
    max_input_chars: int = option(
        MAX_INPUT_CHARS,
        "The longest input, in characters.",
        "the longest input must lie in 1..1000000 characters",
        low=1,
        high=1_000_000,
        whole=True,
    )
    request_timeout: float = option(
        600.0,
        "Seconds from a request to the last byte of its answer.",
        "the request timeout must be a positive time",
        low=0,
        open_low=True,
        unit=" s",
    )
    stall_timeout: float = option(
        60.0,
        "Seconds after which a client that takes no audio is dropped, and a WebSocket's turn to which no more text"
        " comes is complete.",
        "the stall timeout must be a positive time",
        low=0,
        open_low=True,
        unit=" s",
    )
    history: float = field(default=SpeechOptions.history, metadata={"option": option_of(SpeechOptions, "history")})
    shutdown_timeout: float = option(
        30.0,
        "Seconds for what runs to finish after SIGTERM.",
        "the shutdown timeout must be a time from 0 on",
        low=0,
        unit=" s",
    )
    # These two are no options of the command.
    body_timeout: float = 30.0  # how long a request's body may take to arrive
    slow_readers: int = 64  # speeches made and still being fetched, beyond those in slots and queue

    def __post_init__(self) -> None:
        check(self)

    @property
    def max_body_bytes(self) -> int:
        """Twelve bytes for each character (JSON's longest escape) of the two texts, and room for the rest."""
        return 12 * (self.max_input_chars + MAX_INPUT_CHARS) + 65_536
