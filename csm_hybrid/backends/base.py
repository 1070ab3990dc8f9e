"""What the engine asks of the model's parts: the backbone, the depth decoder and the codec.

Each part has several back ends: ``native`` is this project's C++ on the CPU, ``llama`` is llama.cpp (its CUDA,
Metal, Vulkan ... included), ``moshi`` is kyutai's codec on torch, for comparison. They open by :mod:`.open`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..errors import InputError

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
CodecKind = Literal["native", "moshi"]


@dataclass(frozen=True)
class SavedPrefix:
    """A copy of what a slot holds of its first ``count`` positions, in the engine's own form."""

    count: int
    data: NDArray[Any]


class Backbone(Protocol):
    """What the engine asks of a backbone: ``slots`` independent sequences of up to ``positions`` positions."""

    width: int
    vocab: int
    slots: int
    positions: int

    def decode(
        self, embeddings: Float32, positions: Int32, slots: Int32, outputs: NDArray[np.bool_]
    ) -> tuple[Float32, Float32]:
        """One pass over N positions of any mix of slots.

        Takes embeddings (N, width) float32, each one's position and slot (N,) int32, and whether its
        result is wanted (N,) bool. Returns, for the M wanted ones in order, the hidden states after the final
        norm (M, width) and the codebook-0 logits (M, vocab), both float32.

        Raises EngineError when a slot is full or a pass fails.
        """

    def forget(self, slot: int) -> None:
        """Empties a slot, so that it can start again at position 0."""

    def save(self, slot: int, count: int) -> SavedPrefix | None:
        """A copy of a slot's first ``count`` positions, of those that it holds; None where there can be none."""

    def restore(self, slot: int, saved: SavedPrefix) -> bool:
        """Gives an empty slot the positions that were saved, and says whether it could; else it stays empty."""

    def close(self) -> None:
        """Frees what it holds; safe to call twice."""


class DepthDecoder(Protocol):
    """What the engine asks of a depth decoder. B streams, K codebooks, V entries, d_b the backbone's
    width."""

    def decode_frames(self, *, hidden: Float32, c0_logits: Float32, samplers: list[_native.Sampler]) -> Int32:
        """Draw one frame for each stream.

        hidden: (B, d_b) float32, the backbone's last hidden state; c0_logits: (B, V) float32; one sampler for
        each stream. Returns (B, K) int32, each code in 0 .. V - 1, reserved ones included.
        """

    def logits(self, *, hidden: Float32, codes: Int32) -> Float32:
        """Teacher-forced logits (B, K - 1, V) float32 of codes 1 .. K - 1, given hidden (B, d_b) and codes
        (B, K)."""

    def close(self) -> None:
        """Frees its weights; safe to call twice."""


class Codec(Protocol):
    """Frames of codes to samples and back, streaming."""

    @property
    def sample_rate(self) -> int:
        """Samples per second."""

    @property
    def frame_samples(self) -> int:
        """Samples per frame of codes."""

    def new_state(self) -> Any:
        """A stream of sound that begins; belongs to this codec."""

    def decode(self, states: list[Any], codes: NDArray[np.int32]) -> NDArray[np.float32]:
        """Samples (B, F * frame_samples) float32 of the next F frames of B streams; the states move on.

        ``codes`` (B, F, K) int32; K may exceed the number of codebooks that the codec was opened with, the
        first ones are used. Codes outside a codebook (the reserved ones) count as its nearest entry.
        """

    def encode(self, samples: NDArray[np.float32]) -> NDArray[np.int32]:
        """Codes (F, K) int32, all codebooks, of mono samples (N,) at the codec's rate.

        The last frame is filled with silence. :func:`csm_hybrid.audio.resampling.prepare` brings any sound here.
        """

    def new_encode_state(self) -> Any:
        """A stream of sound to encode that begins; belongs to this codec."""

    def encode_frames(self, state: Any, samples: NDArray[np.float32]) -> NDArray[np.int32]:
        """Codes (F, K) int32 of the next F whole frames, samples (F * frame_samples,); the state moves on.

        The codes are the same however the frames are cut into calls.
        """


def whole_frames(samples: Float32, frame_samples: int) -> Float32:
    """Samples (N,) with silence at the end up to a whole number of frames."""
    if samples.ndim != 1:
        raise InputError(f"the codec takes mono samples (N,), not {samples.shape}; see csm_hybrid.audio.resampling")
    return np.pad(samples, (0, -len(samples) % frame_samples)).astype(np.float32, copy=False)
