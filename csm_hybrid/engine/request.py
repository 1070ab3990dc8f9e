"""What the engine works on: requests, and the streams that they become."""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..text.prompt import NO_ENTRY

if TYPE_CHECKING:
    from ..errors import CsmError
    from ..model.config import Sampling
    from ..text.prompt import Frames

FinishReason = Literal["eos", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Request:
    """What to speak: the prompt (T, K + 1), how codes are drawn, and at most how many frames.

    The first ``context`` rows of the prompt are context (a voice); the rest is the text to speak. Where it
    continues a speech, up to ``history`` positions of what was said before come between the two, and
    ``speech_frames`` is the most frames of the speech so far, this piece included. ``pace`` is how many seconds of
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


@dataclass
class StageTimes:
    """Seconds spent in each stage since the engine was made, and the steps and frames they made.

    ``backbone`` counts the passes that give every stream in them a frame; one that takes in some of a prompt counts
    to ``prompt``.
    """

    prompt: float = 0.0
    backbone: float = 0.0
    decoder: float = 0.0
    codec: float = 0.0
    total: float = 0.0
    steps: int = 0
    frames: int = 0


def random_seed() -> int:
    """A seed where none is given: 53 bits, which JSON readers that take numbers for doubles keep exact."""
    return secrets.randbits(53)


class Stream:
    """One request on its way through the engine; ``audio`` fills with one array of samples a frame."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.seed = random_seed() if request.seed is None else request.seed
        self.audio: deque[NDArray[np.float32]] = deque()
        self.codes: list[NDArray[np.int32]] = []
        self.finish_reason: FinishReason | None = None
        self.error: CsmError | None = None
        self.paused = False  # a paused stream keeps its slot and is not advanced
        self.slot: int | None = None
        self.follower: Stream | None = None  # takes over the slot when this one ends
        self.prompt = request.prompt  # what is fed: a continuation's begins with what was said before
        self._previous: Stream | None = None
        self._arrival = 0  # the number of its speech, in order of arrival
        self._said = 0  # frames of the pieces before
        self._dry_at: float | None = None  # when one who plays the speech as it comes has heard all; None: not begun
        self._text_start = request.context  # where this stream's own text begins in the prompt
        self._position = 0  # positions that the backbone has taken in
        self._sampler = _native.Sampler(
            seed=self.seed,
            temperature=request.sampling.temperature,
            top_k=request.sampling.top_k,
            depth_temperature=request.sampling.depth_temperature,
            depth_top_k=request.sampling.depth_top_k,
        )
        self._codec_state: Any = None
        self._next: NDArray[np.float32] | None = None  # (1, d_b), the frame to feed

    @property
    def finished(self) -> bool:
        """Whether no more audio will come."""
        return self.finish_reason is not None

    @property
    def frames(self) -> int:
        """Frames spoken so far."""
        return len(self.codes)

    @property
    def context(self) -> Frames:
        """The part of the prompt, never all of it, that is the same for all requests with its voice."""
        return self.prompt[: min(self.request.context, len(self.prompt) - 1)]

    def _left(self) -> int:
        """Frames that it may still speak."""
        most, whole = self.request.max_frames, self.request.speech_frames
        return (most if whole is None else min(most, whole - self._said)) - self.frames

    def told(self, end_code: int) -> Frames:
        """All that was said, as context for what follows: the prompt, the codes, the frame that ends them."""
        codes = np.array(self.codes, dtype=np.int32).reshape(-1, self.prompt.shape[1] - 1)
        spoken = np.full((len(codes) + 1, self.prompt.shape[1]), NO_ENTRY, dtype=np.int32)
        spoken[:-1, :-1] = codes
        spoken[-1, :-1] = end_code
        return np.concatenate([self.prompt, spoken])
