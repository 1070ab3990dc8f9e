"""The backbone on llama.cpp, which may put it on a GPU: several sequences in one context."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _llama
from ._llama import llama
from .errors import EngineError

if TYPE_CHECKING:
    from .model.config import ModelConfig

_GGML_TYPE_F32 = 0
_UNQUANTISED = {llama.LLAMA_FTYPE_ALL_F32, llama.LLAMA_FTYPE_MOSTLY_F16, llama.LLAMA_FTYPE_MOSTLY_BF16}
_NO_SLOT, _ABORTED = 1, 2
_BATCH = 512  # the most positions of one pass; longer inputs are split


class LlamaBackbone:
    """The Llama tower that looks at all positions, run by llama.cpp; see ``backbone.Backbone``.

    ``sequences`` is how many independent streams one context holds. Quantised weights keep keys and values in
    f16; unquantised ones in f32, which halves the error of the hidden states.
    """

    def __init__(
        self,
        path: Path,
        offset: int,
        config: ModelConfig,
        *,
        threads: int,
        sequences: int = 1,
        gpu_layers: int = -1,
    ) -> None:
        self.width = config.backbone.width
        self.vocab = config.audio_vocab
        self.sequences = sequences
        self.positions = config.backbone.positions
        self._context: Any = None
        self._model: Any = _llama.load_embedded(path, offset, what="backbone", gpu_layers=gpu_layers)
        params = llama.llama_context_default_params()
        params.n_ctx = self.positions * sequences
        params.n_batch = params.n_ubatch = _BATCH
        params.n_seq_max = sequences
        params.n_outputs_max = params.n_outputs_max_per_seq = 0  # as many as there are positions
        params.n_threads = params.n_threads_batch = threads
        params.embeddings = True
        params.pooling_type = llama.LLAMA_POOLING_TYPE_NONE
        if _file_type(self._model) in _UNQUANTISED:
            params.type_k = params.type_v = _GGML_TYPE_F32
            # Flash attention would round an f32 cache to f16 at every use.
            params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.offload_kqv = params.op_offload = gpu_layers != 0
        try:
            self._context = _llama.new_context(self._model, params, what="backbone")
        except EngineError:
            self.close()
            raise
        self._memory = llama.llama_get_memory(self._context)

    def close(self) -> None:
        """Frees the context and the model; safe to call twice."""
        if self._context:
            llama.llama_free(self._context)
            self._context = None
        if self._model:
            llama.llama_model_free(self._model)
            self._model = None

    def decode(
        self,
        embeddings: NDArray[np.float32],
        positions: NDArray[np.int32],
        sequences: NDArray[np.int32],
        outputs: NDArray[np.bool_],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See ``backbone.Backbone``. Raises EngineError when llama.cpp fails; the sequences that took part are
        then undefined and must be forgotten.
        """
        hidden, logits = [], []
        for start in range(0, len(embeddings), _BATCH):
            part = slice(start, start + _BATCH)
            h, c = self._decode_part(embeddings[part], positions[part], sequences[part], outputs[part])
            hidden.append(h)
            logits.append(c)
        return np.concatenate(hidden), np.concatenate(logits)

    def forget(self, sequence: int) -> None:
        """See ``backbone.Backbone``."""
        llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def _decode_part(
        self,
        embeddings: NDArray[np.float32],
        positions: NDArray[np.int32],
        sequences: NDArray[np.int32],
        outputs: NDArray[np.bool_],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        want = np.ascontiguousarray(outputs, dtype=np.int8)
        status = _llama.decode(
            self._context,
            np.ascontiguousarray(embeddings, dtype=np.float32),
            np.ascontiguousarray(positions, dtype=np.int32),
            np.ascontiguousarray(sequences, dtype=np.int32),
            want,
        )
        if status == _NO_SLOT:
            raise EngineError(f"the backbone's context of {self.positions} positions per stream is full")
        if status == _ABORTED:
            raise EngineError("the backbone's pass was aborted")
        if status != 0:
            raise EngineError(f"the backbone's pass failed (llama_decode: {status}): {_llama.last_errors()}")
        wanted = np.flatnonzero(want)
        logits = np.empty((len(wanted), self.vocab), dtype=np.float32)
        for row, index in enumerate(wanted):
            values = llama.llama_get_logits_ith(self._context, int(index))
            logits[row] = np.ctypeslib.as_array(values, (self.vocab,))
        return _llama.hidden_states(self._context, wanted, self.width), logits


def _file_type(model: Any) -> int | None:
    """llama.cpp's file type of a loaded model (``general.file_type``), None where it is not said."""
    buffer = ctypes.create_string_buffer(16)
    length = llama.llama_model_meta_val_str(model, b"general.file_type", buffer, len(buffer))
    return int(buffer.value) if length > 0 else None
