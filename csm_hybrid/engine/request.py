"""A request: what the engine is asked to speak, and how the answer ends."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ..model.config import Sampling
    from ..text.prompt import Frames

FinishReason = Literal["eos", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Request:
    """What to speak: the prompt (T, K + 1), how codes are drawn, and at most how many frames.

    The first ``context`` rows of the prompt are context (a voice); the rest is the text to speak. Where it
    continues a speech, up to ``history`` positions of what was said before come between the two, and
    ``speech_frames`` is the most frames of the speech so far, this chunk included. ``pace`` is how many seconds of
    sound the listener hears a second.
    """

    prompt: Frames
    sampling: Sampling
    max_frames: int
    seed: int | None = None
    context: int = 0
    history: int = 0
    speech_frames: int | None = None
    pace: float = 1.0


def random_seed() -> int:
    """A seed where none is given: 53 bits, which JSON readers that take numbers for doubles keep exact."""
    return secrets.randbits(53)
