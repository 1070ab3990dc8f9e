"""llama.cpp through llama-cpp-python's low-level API: towers that lie as GGUFs inside a model file."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as llama
import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, ModelInvalid, ModelNotFound
from ..model.ggml import GGMLType
from ..model.llama_log import last_errors, listen
from .base import Float32, Int32

_UNQUANTISED = {llama.LLAMA_FTYPE_ALL_F32, llama.LLAMA_FTYPE_MOSTLY_F16, llama.LLAMA_FTYPE_MOSTLY_BF16}
_NO_SLOT = 1  # of llama_decode: the context is full


def _initialise() -> None:
    """Silences llama.cpp's log; call before any other use."""
    listen()
    llama.llama_backend_init()


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fopen.restype = ctypes.c_void_p
    libc.fopen.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
    libc.fseek.restype = ctypes.c_int
    libc.fseek.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_int]
    libc.fclose.argtypes = [ctypes.c_void_p]
    return libc


@contextmanager
def _file_at(path: Path, offset: int) -> Iterator[ctypes.c_void_p]:
    """A C ``FILE *`` on ``path``, positioned at byte ``offset``."""
    libc = _libc()
    file = libc.fopen(os.fsencode(path), b"rb")
    if not file:
        reason = os.strerror(ctypes.get_errno())
        raise ModelNotFound(f"cannot open the model file {path}: {reason}")
    try:
        if libc.fseek(file, offset, 0) != 0:
            raise ModelInvalid(f"cannot seek to byte {offset} of {path}: {os.strerror(ctypes.get_errno())}")
        yield ctypes.c_void_p(file)
    finally:
        libc.fclose(file)


class Tower:
    """A Llama tower, a GGUF that begins at byte ``offset`` of a model file, and one context of it, both llama.cpp's.

    The context holds ``sequences`` streams of up to ``positions`` positions and takes up to ``batch`` positions a
    pass. Keys and values are kept in f32 with ``exact_cache``, else in f16; None: in f32 where the weights are not
    quantised. ``what`` is its name in messages.
    """

    def __init__(
        self,
        path: Path,
        offset: int,
        *,
        what: str,
        sequences: int,
        positions: int,
        batch: int,
        threads: int,
        gpu_layers: int,
        exact_cache: bool | None = None,
    ) -> None:
        """Raises ModelInvalid where llama.cpp refuses the tower, EngineError where memory does not suffice."""
        self.what, self.positions, self.batch = what, positions, batch
        self._context: Any = None
        self._model: Any = None
        self._model = _load(path, offset, what, gpu_layers)
        params = llama.llama_context_default_params()
        params.n_ctx = positions * sequences
        params.n_batch = params.n_ubatch = batch
        params.n_seq_max = sequences
        params.n_outputs_max = params.n_outputs_max_per_seq = 0  # as many as there are positions
        params.n_threads = params.n_threads_batch = threads
        params.embeddings = True
        params.pooling_type = llama.LLAMA_POOLING_TYPE_NONE
        if _file_type(self._model) in _UNQUANTISED if exact_cache is None else exact_cache:
            params.type_k = params.type_v = GGMLType.F32
            # Flash attention would round an f32 cache to f16 at every use.
            params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.offload_kqv = params.op_offload = gpu_layers != 0
        self._context = llama.llama_init_from_model(self._model, params)
        if not self._context:
            self.close()
            raise EngineError(f"llama.cpp cannot make a context for the {what}: {last_errors()}; use fewer slots")
        self._memory = llama.llama_get_memory(self._context)

    def decode(self, embeddings: Float32, positions: Int32, sequences: Int32, outputs: NDArray[np.bool_]) -> None:
        """One pass over embeddings (N, width), each with its position, its sequence and whether its result is wanted
        (N,). Raises EngineError when it fails.
        """
        if not self._context:
            raise EngineError(f"the {self.what} is closed")
        count = len(embeddings)
        embeddings = np.ascontiguousarray(embeddings, dtype=np.float32)
        positions, sequences = (np.ascontiguousarray(a, dtype=np.int32) for a in (positions, sequences))
        wanted = np.ascontiguousarray(outputs, dtype=np.int8)
        ones = np.ones(count, dtype=np.int32)
        sequence_of = sequences.ctypes.data + np.arange(count, dtype=np.uintp) * sequences.itemsize

        def as_pointer(array: NDArray[Any], kind: Any) -> Any:
            return array.ctypes.data_as(ctypes.POINTER(kind))

        batch = llama.llama_batch(
            n_tokens=count,
            token=None,
            embd=as_pointer(embeddings, ctypes.c_float),
            pos=as_pointer(positions, ctypes.c_int32),
            n_seq_id=as_pointer(ones, ctypes.c_int32),
            seq_id=as_pointer(sequence_of, ctypes.POINTER(ctypes.c_int32)),
            logits=as_pointer(wanted, ctypes.c_int8),
        )
        status = llama.llama_decode(self._context, batch)
        if status == _NO_SLOT:
            raise EngineError(f"the {self.what}'s context of {self.positions} positions per stream is full")
        if status != 0:
            raise EngineError(f"the {self.what}'s pass failed (llama_decode: {status}): {last_errors()}")

    def hidden_states(self, indices: NDArray[np.intp], width: int) -> Float32:
        """The states (M, width) after the final norm that the last pass gave for its inputs ``indices`` (M,)."""
        return self._rows(llama.llama_get_embeddings_ith, indices, width)

    def logits(self, indices: NDArray[np.intp], vocab: int) -> Float32:
        """The logits (M, vocab) that the last pass gave for its inputs ``indices`` (M,)."""
        return self._rows(llama.llama_get_logits_ith, indices, vocab)

    def _rows(self, row_of: Any, indices: NDArray[np.intp], width: int) -> Float32:
        out = np.empty((len(indices), width), dtype=np.float32)
        for row, index in enumerate(indices):
            out[row] = np.ctypeslib.as_array(row_of(self._context, int(index)), (width,))
        return out

    def state(self, sequence: int) -> NDArray[np.uint8] | None:
        """A copy of all that a sequence holds, or None where llama.cpp gives none."""
        if not self._context:
            return None
        state = np.empty(llama.llama_state_seq_get_size(self._context, sequence), dtype=np.uint8)
        size = llama.llama_state_seq_get_data(self._context, _bytes(state), state.nbytes, sequence)
        return state if size == state.nbytes else None

    def set_state(self, sequence: int, state: NDArray[np.uint8], count: int) -> bool:
        """Gives an empty sequence the first ``count`` positions of a copy; where that fails, it stays empty."""
        if not self._context:
            return False
        taken = llama.llama_state_seq_set_data(self._context, _bytes(state), state.nbytes, sequence) == state.nbytes
        if taken and llama.llama_memory_seq_rm(self._memory, sequence, count, -1):
            return True
        self.forget(sequence)
        return False

    def forget(self, sequence: int) -> None:
        """Empties a sequence."""
        if self._context:
            llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def forget_all(self) -> None:
        """Empties every sequence."""
        if self._context:
            llama.llama_memory_clear(self._memory, False)

    def close(self) -> None:
        """Frees the context and the model; safe to call twice."""
        if self._context:
            llama.llama_free(self._context)
            self._context = None
        if self._model:
            llama.llama_model_free(self._model)
            self._model = None

    def __del__(self) -> None:
        self.close()


def _bytes(array: NDArray[np.uint8]) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def _load(path: Path, offset: int, what: str, gpu_layers: int) -> Any:
    """llama.cpp's model of a GGUF inside a file, mapped into memory."""
    _initialise()
    params = llama.llama_model_default_params()
    params.n_gpu_layers = gpu_layers
    with _file_at(path, offset) as file:
        model = llama.llama_model_load_from_file_ptr(file, params)
    if not model:
        raise ModelInvalid(f"llama.cpp refuses the {what} in {path}: {last_errors()}")
    return model


def _file_type(model: Any) -> int | None:
    """llama.cpp's file type of a loaded model (``general.file_type``), None where it is not said."""
    buffer = ctypes.create_string_buffer(16)
    length = llama.llama_model_meta_val_str(model, b"general.file_type", buffer, len(buffer))
    return int(buffer.value) if length > 0 else None


def offloads_to_gpu() -> bool:
    """Whether this build of llama.cpp has a GPU back end and a device for it."""
    _initialise()
    return bool(llama.llama_supports_gpu_offload())
