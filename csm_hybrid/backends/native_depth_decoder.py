"""The depth decoder in C++ (csrc/depth_decoder.h), for CPUs."""

from __future__ import annotations

from collections.abc import Mapping

from .. import _native
from ..errors import EngineError, ModelInvalid
from ..model.bundle import Bundle, TensorView
from ..model.config import ModelConfig
from .base import Float32, Int32
from .towers import release_pages, rope_divisors, tower_sizes


class NativeDepthDecoder:
    """The depth decoder on packed weights; see :class:`.base.DepthDecoder`."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, TensorView], pool: _native.ThreadPool) -> None:
        """Pack the weights.

        tensors: the tower's by llama.cpp's names, and ``projection``, ``heads``, ``audio_embd``. They may be
        dropped afterwards; the audio table's data is kept.
        Raises ModelInvalid that lists everything missing or misshapen, EngineError where memory does not suffice.
        """
        named = {"rope_freqs.weight": rope_divisors(config.decoder)} | dict(tensors)
        sizes = _native.DepthDecoderConfig(
            tower=tower_sizes(config.decoder),
            codebooks=config.codebooks,
            vocab=config.audio_vocab,
            input_width=config.backbone.width,
        )
        try:
            self._decoder: _native.DepthDecoder | None = _native.DepthDecoder(config=sizes, tensors=named, pool=pool)
        except ValueError as error:
            raise ModelInvalid(f"{config.name}: {error}") from error
        except MemoryError as error:
            raise EngineError("not enough memory for the depth decoder; use a smaller type of weights") from error

    @classmethod
    def from_bundle(cls, bundle: Bundle, pool: _native.ThreadPool) -> NativeDepthDecoder:
        """Pack a model file's decoder, then let go of the pages of the file that were read for it."""
        packed = {**bundle.decoder_tensors(), **{n: bundle.tensor(n) for n in ("projection", "heads")}}
        decoder = cls(bundle.config, {**packed, "audio_embd": bundle.tensor("audio_embd")}, pool)
        release_pages(tensor.data for tensor in packed.values())
        return decoder

    @property
    def _open(self) -> _native.DepthDecoder:
        if self._decoder is None:
            raise EngineError("the depth decoder is closed")
        return self._decoder

    def measure(self, *, on: bool) -> None:
        """Measure the parts of ``decode_frames`` from now on, anew, or stop."""
        self._open.measure(on=on)

    def parts(self) -> dict[str, float]:
        """Seconds spent in the projection, attention, feed_forward, heads and sampling since ``measure``, and in
        ``barriers``: a thread's mean wait for the last one."""
        return self._open.parts()

    def decode_frames(self, *, hidden: Float32, c0_logits: Float32, samplers: list[_native.Sampler]) -> Int32:
        """See :class:`.base.DepthDecoder`."""
        return self._open.decode_frames(hidden=hidden, c0_logits=c0_logits, samplers=samplers)

    def logits(self, *, hidden: Float32, codes: Int32) -> Float32:
        """See :class:`.base.DepthDecoder`."""
        return self._open.logits(hidden=hidden, codes=codes)

    def close(self) -> None:
        """See :class:`.base.DepthDecoder`."""
        self._decoder = None
