"""The codebook decoder: from the backbone's hidden state and code 0's logits to a whole frame of codes.

Two engines run the same weights: ``native`` (this project's C++ on the CPU) and ``llama`` (llama.cpp's back
ends).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from csm_hybrid import _native
from csm_hybrid.errors import EngineError, ModelInvalid
from csm_hybrid.llama_decoder import LlamaDecoder
from csm_hybrid.model.bundle import Bundle, TensorView
from csm_hybrid.model.config import ModelConfig
from csm_hybrid.towers import release_pages, resolve_engine, rope_divisors, tower_sizes

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


class CodebookDecoder(Protocol):
    """What the engine asks of a codebook decoder. B streams, K codebooks, V entries, d_b the backbone's
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


class NativeDecoder:
    """The codebook decoder in C++ on packed weights (csrc/codebook_decoder.h)."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, TensorView], pool: _native.ThreadPool) -> None:
        """Pack the weights.

        tensors: the tower's by llama.cpp's names, and ``projection``, ``heads``, ``audio_embd``. They may be
        dropped afterwards; the audio table's data is kept.
        Raises ModelInvalid that lists everything missing or misshapen, EngineError where memory does not suffice.
        """
        named = {"rope_freqs.weight": rope_divisors(config.decoder)} | dict(tensors)
        sizes = _native.DecoderConfig(
            tower=tower_sizes(config.decoder),
            codebooks=config.codebooks,
            vocab=config.audio_vocab,
            input_width=config.backbone.width,
        )
        try:
            self._decoder: _native.CodebookDecoder | None = _native.CodebookDecoder(
                config=sizes, tensors=named, pool=pool
            )
        except ValueError as error:
            raise ModelInvalid(f"{config.name}: {error}") from error
        except MemoryError as error:
            raise EngineError("not enough memory for the codebook decoder; use a smaller type of weights") from error

    @classmethod
    def from_bundle(cls, bundle: Bundle, pool: _native.ThreadPool) -> NativeDecoder:
        """Pack a model file's decoder, then let go of the pages of the file that were read for it."""
        packed = {**bundle.decoder_tensors(), **{n: bundle.tensor(n) for n in ("projection", "heads")}}
        decoder = cls(bundle.config, {**packed, "audio_embd": bundle.tensor("audio_embd")}, pool)
        release_pages(tensor.data for tensor in packed.values())
        return decoder

    @property
    def _open(self) -> _native.CodebookDecoder:
        if self._decoder is None:
            raise EngineError("the codebook decoder is closed")
        return self._decoder

    def measure(self, *, on: bool) -> None:
        """Measure the parts of ``decode_frames`` from now on, anew, or stop."""
        self._open.measure(on=on)

    def parts(self) -> dict[str, float]:
        """Seconds spent in the projection, attention, feed_forward, heads and sampling since ``measure``, and in
        ``barriers``: a thread's mean wait for the last one."""
        return self._open.parts()

    def decode_frames(self, *, hidden: Float32, c0_logits: Float32, samplers: list[_native.Sampler]) -> Int32:
        """See :class:`CodebookDecoder`."""
        return self._open.decode_frames(hidden=hidden, c0_logits=c0_logits, samplers=samplers)

    def logits(self, *, hidden: Float32, codes: Int32) -> Float32:
        """See :class:`CodebookDecoder`."""
        return self._open.logits(hidden=hidden, codes=codes)

    def close(self) -> None:
        """See :class:`CodebookDecoder`."""
        self._decoder = None


def open_decoder(
    bundle: Bundle, pool: _native.ThreadPool, *, engine: str = "auto", max_streams: int = 1, gpu_layers: int = -1
) -> CodebookDecoder:
    """Open a model file's codebook decoder for up to ``max_streams`` streams at once.

    engine: ``native``, ``llama`` or ``auto`` (``llama`` where llama.cpp offloads to a GPU, else ``native``);
    gpu_layers: how many layers llama.cpp may put on a GPU, -1 for all.
    Raises ModelInvalid for unusable weights, EngineError for an unknown engine.
    """
    if resolve_engine(engine, gpu_layers) == "llama":
        return LlamaDecoder(bundle, pool, max_streams=max_streams, gpu_layers=gpu_layers)
    return NativeDecoder.from_bundle(bundle, pool)
