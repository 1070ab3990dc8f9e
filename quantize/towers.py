"""A tower as a llama-architecture GGUF, quantised by llama.cpp."""

from __future__ import annotations

import ctypes
import errno
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from gguf import GGUFWriter
from gguf.constants import GGUF_DEFAULT_ALIGNMENT
from numpy.typing import NDArray

from csm_hybrid.errors import EngineError
from csm_hybrid.model.config import TowerConfig
from csm_hybrid.model.file_schema import VECTOR_TYPES, TensorSpec, tower_tensors, tower_values
from csm_hybrid.model.ggml import GGMLType, fits, row_bytes
from csm_hybrid.model.llama_log import capture_log

from .interruptible import Interruptible
from .safetensors import Array

Load = Callable[[str], Array]


def write_tower(
    path: Path,
    tower: TowerConfig,
    vocab: int,
    load: Load,
    *,
    head: bool,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Write the unquantised tower a tensor at a time: matrices as the checkpoint has them, vectors in f32.

    ``load`` gives a tensor by llama.cpp's name, row-major (out, in), Q/K rows in interleaved pairs; the stand-in
    vocabulary and the rotary divisors are made here. ``progress`` is called once a tensor.
    Raises ModelInvalid for weights that are NaN or infinite, OSError where the disk is full.
    """
    specs = list(tower_tensors(tower, vocab, head=head))
    types = [_type_in_file(spec, tower, load) for spec in specs]
    writer = _started(path, tower, vocab, specs, types)
    try:
        for spec, kind in zip(specs, types, strict=True):
            writer.write_tensor_data(_values(spec, tower, load, kind))
            progress()
    finally:
        writer.close()


def tower_header(
    path: Path, tower: TowerConfig, vocab: int, specs: Sequence[TensorSpec], types: Sequence[GGMLType]
) -> tuple[bytes, list[int], int]:
    """A tower's header, padded to its data, the tensors' places in the GGUF and the whole size in bytes.

    ``path`` names a scratch file.
    """
    _started(path, tower, vocab, specs, types).close()
    header = path.read_bytes()
    header += bytes(-len(header) % GGUF_DEFAULT_ALIGNMENT)
    offsets, end = [], len(header)
    for spec, kind in zip(specs, types, strict=True):
        offsets.append(end)
        end += _size(spec, kind) + -_size(spec, kind) % GGUF_DEFAULT_ALIGNMENT
    return header, offsets, end


def _started(
    path: Path, tower: TowerConfig, vocab: int, specs: Sequence[TensorSpec], types: Sequence[GGMLType]
) -> GGUFWriter:
    """A writer that has written the header and waits for the tensors' data, in order."""
    writer = GGUFWriter(path, "llama")
    for key, value in tower_values(tower, vocab).items():
        _add_value(writer, key, value)
    for spec, kind in zip(specs, types, strict=True):
        writer.add_tensor_info(spec.name, spec.shape, np.dtype(np.float32), _size(spec, kind), raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    except BaseException:
        writer.close()
        raise
    return writer


def _size(spec: TensorSpec, kind: GGMLType) -> int:
    return math.prod(spec.shape[:-1]) * row_bytes(kind, spec.shape[-1])


def _add_value(writer: GGUFWriter, key: str, value: str | int | float) -> None:
    if key == "general.architecture":
        return  # the writer's own
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        writer.add_float32(key, value)


def _made_here(spec: TensorSpec, tower: TowerConfig) -> NDArray[Any] | None:
    if spec.name == "token_embd.weight":
        return np.zeros(spec.shape, np.float16)
    if spec.name == "rope_freqs.weight":
        return tower.rope_divisors()
    return None


def _type_in_file(spec: TensorSpec, tower: TowerConfig, load: Load) -> GGMLType:
    if spec.types == VECTOR_TYPES:
        return GGMLType.F32
    return GGMLType.F16 if _made_here(spec, tower) is not None else load(spec.name).type


def _values(spec: TensorSpec, tower: TowerConfig, load: Load, kind: GGMLType) -> NDArray[Any]:
    made = _made_here(spec, tower)
    if made is not None:
        return made
    array = load(spec.name).checked()
    return np.ascontiguousarray(array.float32() if kind == GGMLType.F32 else array.values)


def quantize_tower(
    source: Path,
    target: Path,
    file_type: int,
    width: int,
    *,
    importance: Mapping[str, NDArray[np.float32]] | None = None,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Quantise a tower's GGUF by ``llama_model_quantize``, its stand-in vocabulary as small as can be.

    ``importance`` weighs a tensor's columns, (columns,) float32 by tensor name. ``progress`` is called once
    a tensor. Raises EngineError with llama.cpp's reason, OSError where the disk is full. A Ctrl-C
    interrupts it between tensors.
    """
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = file_type
    parameters.token_embedding_type = GGMLType.Q4_0 if fits(GGMLType.Q4_0, width) else GGMLType.F16
    parameters.imatrix, kept = _importance(importance or {})
    lines: list[str] = []
    apart = Interruptible()

    def logged(line: str) -> None:
        apart.checkpoint()
        lines.append(line)
        if line.startswith("["):
            progress()

    def quantise() -> int:
        with capture_log(logged):
            return int(llama_cpp.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(parameters)))

    status = apart.run(quantise)
    del kept  # llama.cpp read it until here
    if status != 0 and any("iostream" in line for line in lines):
        raise OSError(errno.ENOSPC, "llama.cpp could not write all of its output")
    if status != 0:
        reason = next((line for line in reversed(lines) if "fail" in line or "error" in line), "no reason given")
        raise EngineError(f"llama.cpp could not quantise {source.name}: {reason}")


def _importance(matrix: Mapping[str, NDArray[np.float32]]) -> tuple[Any, list[NDArray[np.float32]]]:
    """llama.cpp's array of (name, data, size), ended by an empty name, and the arrays it points into."""
    kept = [np.ascontiguousarray(values, np.float32) for values in matrix.values()]
    if not kept:
        return None, kept
    entries = (llama_cpp.llama_cpp.llama_model_imatrix_data * (len(kept) + 1))()
    for i, (name, values) in enumerate(zip(matrix, kept, strict=True)):
        entries[i].name = name.encode()
        entries[i].data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entries[i].size = values.size
    return entries, kept
