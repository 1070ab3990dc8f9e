"""What the model files need of ggml, through the library that llama-cpp-python brings.

ggml's own parser reads GGUF headers: it checks every count, length and type against the bytes it was given,
reads at any offset of a file (a bundle holds two GGUFs inside), and never sees the tensor data. Its
quantiser makes the tables' rows. Both are C functions of ``libggml-base``, declared once, here.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from .llama_log import capture_log

GGMLType = GGMLQuantizationType

MAX_ARRAY = 65536
"""Items of the longest array value that is read; this project's files hold arrays of a few."""

SCALARS: dict[GGUFValueType, tuple[str, Any]] = {
    GGUFValueType.UINT8: ("u8", ctypes.c_uint8),
    GGUFValueType.INT8: ("i8", ctypes.c_int8),
    GGUFValueType.UINT16: ("u16", ctypes.c_uint16),
    GGUFValueType.INT16: ("i16", ctypes.c_int16),
    GGUFValueType.UINT32: ("u32", ctypes.c_uint32),
    GGUFValueType.INT32: ("i32", ctypes.c_int32),
    GGUFValueType.UINT64: ("u64", ctypes.c_uint64),
    GGUFValueType.INT64: ("i64", ctypes.c_int64),
    GGUFValueType.FLOAT32: ("f32", ctypes.c_float),
    GGUFValueType.FLOAT64: ("f64", ctypes.c_double),
    GGUFValueType.BOOL: ("bool", ctypes.c_bool),
}
"""The scalar value types of GGUF: the suffix of ggml's accessor and its C type."""


class GgufError(ValueError):
    """The bytes are no GGUF that ggml accepts; the message is ggml's."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a GGUF header: GGML type id, row-major shape, place in the file."""

    type: int
    shape: tuple[int, ...]
    offset: int  # bytes from the GGUF's first byte
    size: int  # bytes


@dataclass(frozen=True)
class GgufHeader:
    """A parsed GGUF header: values by key (arrays of numbers as tuples), tensors by name."""

    values: dict[str, Any]
    tensors: dict[str, TensorInfo]


class _InitParams(ctypes.Structure):
    """``struct gguf_init_params``."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def _libraries() -> Iterator[ctypes.CDLL]:
    """Where ggml's functions may be found: libllama's own dependencies first, so that one copy serves all."""
    yield llama_cpp.llama_cpp._lib
    folder = Path(llama_cpp.__file__).parent / "lib"
    base = folder / f"libggml-base.{'dylib' if sys.platform == 'darwin' else 'so'}"
    if base.exists():
        yield ctypes.CDLL(str(base))


@cache
def _function(name: str, result: Any, *arguments: Any) -> Any:
    """A C function of ggml by name; OSError if this build of llama.cpp has none."""
    for library in _libraries():
        # A fresh function object: the argument types are this declaration's own.
        try:
            address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        except AttributeError:
            continue
        assert address is not None
        return ctypes.CFUNCTYPE(result, *arguments)(address)
    raise OSError(f"llama-cpp-python {llama_cpp.__version__} has no {name}; install version 0.3.36 or newer")


def _context_function(name: str, result: Any, *arguments: Any) -> Any:
    return _function(f"gguf_{name}", result, ctypes.c_void_p, *arguments)


def parse_gguf(data: NDArray[np.uint8], offset: int = 0) -> GgufHeader:
    """Read the GGUF header that begins at ``offset`` of ``data`` (uint8, usually a mapped file).

    Nothing is trusted: a count, length, type, shape or offset that does not fit ``data`` raises GgufError.
    """
    parameters = _InitParams(no_alloc=True, ctx=None)
    start = _function("gguf_init_from_buffer", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, _InitParams)
    size = data.size - offset
    log: list[str] = []
    with capture_log(log.append):
        context = start(data.ctypes.data + offset, size, parameters)
    if not context:
        raise GgufError(_last_reason(log))
    try:
        return GgufHeader(values=_read_values(context), tensors=_read_tensors(context, size))
    except UnicodeDecodeError as error:
        raise GgufError(f"a name or text is not UTF-8: {error.reason}") from error
    finally:
        _context_function("free", None)(context)


def _last_reason(log: list[str]) -> str:
    reasons = [line.split(": ", 1)[-1] for line in log if line]
    return reasons[0] if reasons else "it is not a GGUF file"


def _read_values(context: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for i in range(_context_function("get_n_kv", ctypes.c_int64)(context)):
        key = _context_function("get_key", ctypes.c_char_p, ctypes.c_int64)(context, i).decode()
        values[key] = _read_value(context, i)
    return values


def _read_value(context: int, i: int) -> Any:
    kind = _context_function("get_kv_type", ctypes.c_int, ctypes.c_int64)(context, i)
    if kind == GGUFValueType.STRING:
        return _context_function("get_val_str", ctypes.c_char_p, ctypes.c_int64)(context, i).decode()
    if kind != GGUFValueType.ARRAY:
        suffix, ctype = SCALARS[GGUFValueType(kind)]
        return _context_function(f"get_val_{suffix}", ctype, ctypes.c_int64)(context, i)
    count = _context_function("get_arr_n", ctypes.c_size_t, ctypes.c_int64)(context, i)
    item = _context_function("get_arr_type", ctypes.c_int, ctypes.c_int64)(context, i)
    if count > MAX_ARRAY:
        raise GgufError(f"a value is an array of {count} items; at most {MAX_ARRAY} are read")
    if item == GGUFValueType.STRING:
        text = _context_function("get_arr_str", ctypes.c_char_p, ctypes.c_int64, ctypes.c_size_t)
        return tuple(text(context, i, j).decode() for j in range(count))
    ctype = SCALARS[GGUFValueType(item)][1]
    address = _context_function("get_arr_data", ctypes.c_void_p, ctypes.c_int64)(context, i)
    return tuple((ctype * count).from_address(address)) if count else ()


def _read_tensors(context: int, available: int) -> dict[str, TensorInfo]:
    base = _context_function("get_data_offset", ctypes.c_size_t)(context)
    tensors: dict[str, TensorInfo] = {}
    for i in range(_context_function("get_n_tensors", ctypes.c_int64)(context)):
        name = _context_function("get_tensor_name", ctypes.c_char_p, ctypes.c_int64)(context, i).decode()
        kind = _context_function("get_tensor_type", ctypes.c_int, ctypes.c_int64)(context, i)
        offset = base + _context_function("get_tensor_offset", ctypes.c_size_t, ctypes.c_int64)(context, i)
        size = _context_function("get_tensor_size", ctypes.c_size_t, ctypes.c_int64)(context, i)
        extents = _context_function("get_tensor_ne", ctypes.POINTER(ctypes.c_int64), ctypes.c_int64)(context, i)
        if offset + size > available:
            raise GgufError(f"tensor {name!r} ends at byte {offset + size}, the file has {available}: truncated")
        tensors[name] = TensorInfo(kind, _row_major(extents[:4]), offset, size)
    return tensors


def _row_major(extents: list[int]) -> tuple[int, ...]:
    """ggml's four extents, innermost first, as a row-major shape without the outer ones of 1."""
    while len(extents) > 1 and extents[-1] == 1:
        extents = extents[:-1]
    return tuple(reversed(extents))


def row_bytes(kind: int, columns: int) -> int:
    """Bytes of a row of ``columns`` values in GGML type ``kind``; ValueError if blocks do not divide it."""
    block, size = GGML_QUANT_SIZES[GGMLType(kind)]
    if columns % block:
        raise ValueError(f"rows of {columns} values do not divide into {GGMLType(kind).name}'s blocks of {block}")
    return int(columns // block * size)


def fits(kind: int, columns: int) -> bool:
    """Whether rows of ``columns`` values divide into the blocks of GGML type ``kind``."""
    block, _ = GGML_QUANT_SIZES[GGMLType(kind)]
    return bool(columns % block == 0)


THREAD_VALUES = 1 << 20
"""Values that are worth a thread's while: some tens of milliseconds in the slowest types."""


def quantize_rows(kind: int, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Rows (n, columns) float32 in GGML type ``kind``, by ggml's quantiser: (n, row_bytes) uint8.

    Rows are independent: any number of threads gives the same bytes. Raises ValueError where the type's blocks do
    not divide the columns.
    """
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    count, columns = rows.shape
    out = np.empty((count, row_bytes(kind, columns)), dtype=np.uint8)
    quantize = _function(
        "ggml_quantize_chunk",
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    )

    def part(span: range) -> int:
        begin = span.start * columns
        written = quantize(int(kind), rows.ctypes.data, out.ctypes.data, begin, len(span), columns, None)
        return int(written)

    step = max(1, THREAD_VALUES // columns)
    spans = [range(start, min(start + step, count)) for start in range(0, count, step)]
    if len(spans) == 1:
        total = part(spans[0])
    else:
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            total = sum(threads.map(part, spans))
    if total != out.nbytes:
        raise RuntimeError(f"ggml wrote {total} of {out.nbytes} bytes of {GGMLType(kind).name}")
    return out
