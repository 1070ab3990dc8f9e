"""A tower as a llama-architecture GGUF, quantised by llama.cpp."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from gguf import GGUFWriter
from numpy.typing import NDArray

from csm_hybrid.errors import EngineError
from csm_hybrid.model.config import TowerConfig
from csm_hybrid.model.ggml import GGMLType, capture_log, fits
from csm_hybrid.model.schema import VECTOR_TYPES, TensorSpec, tower_tensors, tower_values
from quantize.safetensors import DTYPES, Array

Load = Callable[[str], Array]

_NUMPY = dict(DTYPES.values())


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

    ``load`` gives a tensor by llama.cpp's name; the stand-in vocabulary and the rotary divisors are made
    here.
    """
    writer = GGUFWriter(path, "llama")
    for key, value in tower_values(tower, vocab).items():
        _add_value(writer, key, value)
    specs = list(tower_tensors(tower, vocab, head=head))
    types = {spec.name: _type_in_file(spec, tower, load) for spec in specs}
    for spec in specs:
        dtype = _NUMPY[types[spec.name]]
        size = int(np.prod(spec.shape)) * dtype.itemsize
        writer.add_tensor_info(spec.name, spec.shape, dtype, size, raw_dtype=types[spec.name])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for spec in specs:
            writer.write_tensor_data(_values(spec, tower, load, types[spec.name]))
            progress()
    finally:
        writer.close()


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
    array = load(spec.name)
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
    a tensor. Raises EngineError with llama.cpp's reason, OSError where the disk is full.
    """
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = file_type
    parameters.token_embedding_type = GGMLType.Q4_0 if fits(GGMLType.Q4_0, width) else GGMLType.F16
    parameters.imatrix, kept = _importance(importance or {})
    lines: list[str] = []

    def logged(line: str) -> None:
        lines.append(line)
        if line.startswith("["):
            progress()

    with capture_log(logged):
        status = llama_cpp.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(parameters))
    del kept  # llama.cpp read it until here
    if status != 0 and any("iostream" in line for line in lines):
        raise OSError(errno.ENOSPC, "llama.cpp could not write all of its output")
    if status != 0:
        reason = next(
            (line for line in reversed(lines) if "fail" in line or "error" in line), "no reason given"
        )
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
