"""The Mimi codec: frames of codes to sound, and sound to frames of codes.

:func:`open_codec` gives a :class:`Codec` from a model file. Its weights are read once and shared by all
streams; what one stream remembers from call to call is a state, made by ``new_state()`` and passed in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from csm_hybrid.codec.native import NativeCodec, tensors_of
from csm_hybrid.errors import InputError

if TYPE_CHECKING:
    from csm_hybrid import _native
    from csm_hybrid.model.bundle import Bundle

CodecKind = Literal["native", "moshi"]


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

        The last frame is filled with silence. :func:`csm_hybrid.codec.sound.prepare` brings any sound here.
        """

    def new_encode_state(self) -> Any:
        """A stream of sound to encode that begins; belongs to this codec."""

    def encode_frames(self, state: Any, samples: NDArray[np.float32]) -> NDArray[np.int32]:
        """Codes (F, K) int32 of the next F whole frames, samples (F * frame_samples,); the state moves on.

        The codes are the same however the frames are cut into calls.
        """


def open_codec(
    bundle: Bundle,
    pool: _native.ThreadPool,
    *,
    kind: CodecKind = "native",
    codebooks: int | None = None,
    device: str | None = None,
) -> Codec:
    """The codec of a model file.

    ``kind`` "moshi" is the reference implementation on torch, for comparison and for CUDA; ``device`` is
    torch's then (None: CUDA where there is one). ``codebooks`` decodes only the first so many (all, when
    None): less detail, hardly less work. Raises InputError for a number that the codec does not have, an
    unknown kind or one that is not installed, ModelInvalid for tensors that do not fit.
    """
    config = bundle.config.codec
    # A model may give fewer codes than its codec has books.
    most = min(config.codebooks, bundle.config.codebooks)
    codebooks = most if codebooks is None else codebooks
    if not config.semantic_codebooks <= codebooks <= most:
        raise InputError(
            f"cannot decode {codebooks} codebooks: this model takes {config.semantic_codebooks} to {most}"
        )
    if kind == "native":
        return NativeCodec(config, tensors_of(bundle), pool, codebooks=codebooks)
    if kind == "moshi":
        from csm_hybrid.codec.moshi import MoshiCodec  # torch only where asked for

        return MoshiCodec(config, tensors_of(bundle), codebooks=codebooks, device=device, threads=pool.threads)
    raise InputError(f"no codec is called {kind!r}; choose native or moshi")
