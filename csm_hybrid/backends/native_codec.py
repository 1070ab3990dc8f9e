"""The codec in C++ (csrc/mimi), for CPUs."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..errors import EngineError, ModelInvalid
from ..model.codec_schema import decoder_shapes, encoder_shapes, stands_half
from ..model.config import MimiConfig
from ..model.ggml import GGMLType
from .base import whole_frames

if TYPE_CHECKING:
    from ..model.bundle import Bundle

Floats = NDArray[np.float32]

# The part that a stage of csrc/mimi/decoder.cpp belongs to, by the first word of its name.
_PARTS = {"rvq": "quantiser", "upsample": "transformer", "transformer": "transformer"}

_DTYPES: dict[int, type[np.floating[Any]]] = {GGMLType.F32: np.float32, GGMLType.F16: np.float16}


class NativeCodec:
    """Streaming Mimi on float32 weights; see :class:`.base.Codec`.

    Samples are the same bit for bit however frames are cut into calls, streams grouped and threads counted;
    between instruction sets they differ by rounding.
    """

    def __init__(
        self,
        config: MimiConfig,
        tensors: Mapping[str, NDArray[np.floating]],
        pool: _native.ThreadPool,
        *,
        codebooks: int | None = None,
    ) -> None:
        """``tensors``: canonical names (:mod:`csm_hybrid.model.codec_schema`), float32; the transformers' matrices
        may be float16, which they stay: half the bytes to read for a frame. Raises ModelInvalid, EngineError where
        memory does not suffice.
        """
        self.config = config
        self._codebooks = config.codebooks if codebooks is None else codebooks
        self._tensors = tensors
        self._pool = pool
        wanted = {name: tensors[name] for name in decoder_shapes(config) if name in tensors}
        try:
            self._decoder = _native.MimiDecoder(config=config, tensors=wanted, pool=pool)
        except ValueError as error:
            raise ModelInvalid(str(error)) from error
        except MemoryError as error:
            raise EngineError("not enough memory for the codec") from error
        self._lock = threading.Lock()  # of what follows
        self._made: _native.MimiEncoder | None = None

    @property
    def _encoder(self) -> _native.MimiEncoder:
        """Made when first asked for: most processes only decode, and its weights are as many again."""
        with self._lock:
            if self._made is None:
                wanted = {name: self._tensors[name] for name in encoder_shapes(self.config) if name in self._tensors}
                try:
                    self._made = _native.MimiEncoder(config=self.config, tensors=wanted, pool=self._pool)
                except ValueError as error:
                    raise ModelInvalid(str(error)) from error
                except MemoryError as error:
                    raise EngineError("not enough memory to encode recordings") from error
            return self._made

    @property
    def sample_rate(self) -> int:
        """Samples per second."""
        return self.config.sample_rate

    @property
    def frame_samples(self) -> int:
        """Samples per frame of codes."""
        return self.config.frame_samples

    def measure(self, *, on: bool) -> None:
        """Measure the parts of ``decode`` from now on, anew, or stop."""
        self._decoder.measure(on=on)

    def parts(self) -> dict[str, float]:
        """Seconds spent in the quantiser, the transformer and the convolutions of ``decode`` since ``measure``."""
        out = dict.fromkeys(("quantiser", "transformer", "convolutions"), 0.0)
        for stage, (seconds, _, _) in self._decoder.stages().items():
            out[_PARTS.get(stage.split(".")[0], "convolutions")] += seconds
        return out

    def new_state(self) -> _native.MimiDecoderState:
        """A stream of sound that begins."""
        return self._decoder.new_state()

    def decode(self, states: list[_native.MimiDecoderState], codes: NDArray[np.int32]) -> NDArray[np.float32]:
        """See :meth:`.base.Codec.decode`. Raises ValueError for shapes that do not fit."""
        codes = np.ascontiguousarray(codes, dtype=np.int32)
        return self._decoder.decode(states=states, codes=codes, codebooks=self._codebooks)

    def encode(self, samples: Floats) -> NDArray[np.int32]:
        """See :meth:`.base.Codec.encode`."""
        return self.encode_frames(self.new_encode_state(), whole_frames(samples, self.frame_samples))

    def new_encode_state(self) -> _native.MimiEncoderState:
        """A stream of sound to encode that begins."""
        return self._encoder.new_state()

    def encode_frames(self, state: _native.MimiEncoderState, samples: Floats) -> NDArray[np.int32]:
        """See :meth:`.base.Codec.encode_frames`. Raises ValueError where frames are not whole."""
        samples = np.ascontiguousarray(samples, dtype=np.float32)
        return self._encoder.encode(state=state, samples=samples)


def tensors_of(bundle: Bundle) -> dict[str, NDArray[np.floating]]:
    """The codec's tensors of a model file: views of the file where it holds float32, which all others become.

    But for the transformers' matrices in float16, which stay as they are.
    """
    out: dict[str, NDArray[np.floating]] = {}
    for name, view in bundle.codec_tensors().items():
        dtype = _DTYPES.get(view.type)
        if dtype is None:
            raise ModelInvalid(
                f"{bundle.path}: codec tensor {name} has GGML type {view.type}, not F32 or F16; convert it again"
            )
        kept = dtype if stands_half(name) else np.float32
        out[name] = np.ascontiguousarray(view.data.view(dtype).reshape(view.shape), dtype=kept)
    return out
