"""llama.cpp through llama-cpp-python's low-level API: loading a GGUF that lies inside a larger file."""

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

from .errors import EngineError, ModelInvalid, ModelNotFound

__all__ = [
    "decode",
    "hidden_states",
    "initialise",
    "last_errors",
    "llama",
    "load_embedded",
    "new_context",
    "offloads_to_gpu",
]

_GGML_LOG_ERROR = 4
_GGML_LOG_CONTINUE = 5
_log_lines: list[str] = []
_last_level = 0


@llama.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_errors(level: int, text: bytes, _user_data: object) -> None:
    """Keeps llama.cpp's warnings and errors for our messages; everything else is dropped."""
    global _last_level  # noqa: PLW0603
    _last_level = level if level != _GGML_LOG_CONTINUE else _last_level
    if _last_level >= _GGML_LOG_ERROR:
        _log_lines.append(text.decode("utf-8", "replace").strip())
        del _log_lines[:-20]


def initialise() -> Any:
    """Silences llama.cpp's log and returns its module; call before any other use."""
    llama.llama_log_set(_keep_errors, ctypes.c_void_p(0))
    llama.llama_backend_init()
    return llama


def last_errors() -> str:
    """What llama.cpp has said of errors since the last call, as one line."""
    text = "; ".join(line for line in _log_lines if line)
    _log_lines.clear()
    return text or "llama.cpp gave no reason"


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL("ucrtbase" if os.name == "nt" else None, use_errno=True)
    libc.fopen.restype = ctypes.c_void_p
    libc.fopen.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
    seek = libc._fseeki64 if os.name == "nt" else libc.fseek
    seek.restype = ctypes.c_int
    seek.argtypes = [ctypes.c_void_p, ctypes.c_longlong if os.name == "nt" else ctypes.c_long, ctypes.c_int]
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
        seek = libc._fseeki64 if os.name == "nt" else libc.fseek
        if seek(file, offset, 0) != 0:
            raise ModelInvalid(f"cannot seek to byte {offset} of {path}: {os.strerror(ctypes.get_errno())}")
        yield ctypes.c_void_p(file)
    finally:
        libc.fclose(file)


def load_embedded(path: Path, offset: int, *, what: str, gpu_layers: int) -> Any:
    """Loads the GGUF that begins at byte ``offset`` of ``path`` and maps it into memory.

    Returns llama.cpp's model pointer; free it with ``llama_model_free``. Raises ModelInvalid when llama.cpp
    refuses it.
    """
    initialise()
    params = llama.llama_model_default_params()
    params.n_gpu_layers = gpu_layers
    with _file_at(path, offset) as file:
        model = llama.llama_model_load_from_file_ptr(file, params)
    if not model:
        raise ModelInvalid(f"llama.cpp refuses the {what} in {path}: {last_errors()}")
    return model


def new_context(model: Any, params: Any, *, what: str) -> Any:
    """A llama.cpp context; raises EngineError when there is not enough memory for it."""
    context = llama.llama_init_from_model(model, params)
    if not context:
        raise EngineError(f"llama.cpp cannot make a context for the {what}: {last_errors()}")
    return context


def decode(
    context: Any,
    embeddings: NDArray[np.float32],
    positions: NDArray[np.int32],
    sequences: NDArray[np.int32],
    outputs: NDArray[np.int8],
) -> int:
    """One ``llama_decode`` of embeddings (N, width), each with its position, its sequence and whether its
    result is wanted (N,); returns llama.cpp's status, 0 where it went well.
    """
    count = len(embeddings)
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
        logits=as_pointer(outputs, ctypes.c_int8),
    )
    return int(llama.llama_decode(context, batch))


def hidden_states(context: Any, indices: NDArray[np.intp], width: int) -> NDArray[np.float32]:
    """The states (M, width) float32 that the last pass gave for the inputs ``indices`` (M,)."""
    out = np.empty((len(indices), width), dtype=np.float32)
    for row, index in enumerate(indices):
        out[row] = np.ctypeslib.as_array(llama.llama_get_embeddings_ith(context, int(index)), (width,))
    return out


def offloads_to_gpu() -> bool:
    """Whether this build of llama.cpp has a GPU back end and a device for it."""
    initialise()
    return bool(llama.llama_supports_gpu_offload())
