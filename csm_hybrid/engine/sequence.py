"""The engine's record of one request on its way through it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _native
from .request import FinishReason, Request, random_seed

if TYPE_CHECKING:
    from ..errors import CsmError
    from ..text.prompt import Frames


@dataclass(eq=False)
class Sequence:
    """One request: where it stands, and what it has said. The engine alone writes it.

    ``audio`` fills with one array of samples (frame_samples,) float32 a frame, for whoever runs the engine to take.
    """

    request: Request
    seed: int
    sampler: _native.Sampler
    prompt: Frames  # what is fed: a continuation's begins with what was said before
    text_start: int  # where this request's own text begins in the prompt
    arrival: int = 0  # the number of its speech, in order of arrival
    previous: Sequence | None = None  # what it continues, until it starts
    follower: Sequence | None = None  # what takes over the slot when this one ends
    earlier_frames: int = 0  # of the chunks before it
    dry_at: float | None = None  # when one who plays the speech as it comes has heard all; None: not begun

    slot: int | None = None
    position: int = 0  # positions that the backbone has taken in
    next_input: NDArray[np.float32] | None = None  # (1, d_b), the frame to feed; None while the prompt is taken in
    codec_state: Any = None

    audio: deque[NDArray[np.float32]] = field(default_factory=deque)
    codes: list[NDArray[np.int32]] = field(default_factory=list)  # (K,) a frame
    finish_reason: FinishReason | None = None
    error: CsmError | None = None

    @classmethod
    def of(cls, request: Request) -> Sequence:
        """A request that nothing has been done for yet."""
        seed = random_seed() if request.seed is None else request.seed
        sampling = request.sampling
        sampler = _native.Sampler(
            seed=seed,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            depth_temperature=sampling.depth_temperature,
            depth_top_k=sampling.depth_top_k,
        )
        return cls(request, seed, sampler, prompt=request.prompt, text_start=request.context)

    @property
    def finished(self) -> bool:
        """Whether no more audio will come."""
        return self.finish_reason is not None

    @property
    def frames(self) -> int:
        """Frames spoken so far."""
        return len(self.codes)

    @property
    def frames_left(self) -> int:
        """Frames that it may still speak."""
        most, whole = self.request.max_frames, self.request.speech_frames
        return (most if whole is None else min(most, whole - self.earlier_frames)) - self.frames

    @property
    def context(self) -> Frames:
        """The part of the prompt, never all of it, that is the same for all requests with its voice."""
        return self.prompt[: min(self.request.context, len(self.prompt) - 1)]
