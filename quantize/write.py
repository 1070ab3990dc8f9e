"""Writing a bundle: the header from the schema, then one tensor after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_VERSION
from numpy.typing import NDArray

from csm_hybrid.model import file_schema as schema
from csm_hybrid.model.config import ModelConfig
from csm_hybrid.model.ggml import GGMLType, row_bytes
from csm_hybrid.model.values import values_of


@dataclass(frozen=True)
class Entry:
    """A tensor to write: its bytes come in chunks, made when the file is ready for them."""

    name: str
    type: GGMLType
    shape: tuple[int, ...]  # row-major
    chunks: Callable[[], Iterable[NDArray[Any]]]

    @property
    def size(self) -> int:
        """Bytes of data."""
        rows = int(np.prod(self.shape[:-1], dtype=np.int64))
        return rows * row_bytes(self.type, self.shape[-1])


COPIED = 64 << 20
"""Bytes of a file that are copied at a time."""


def file_entry(name: str, path: Path) -> Entry:
    """A whole file as an I8 tensor, read a chunk at a time."""
    size = path.stat().st_size

    def chunks() -> Iterator[NDArray[Any]]:
        for start in range(0, size, COPIED):
            yield np.fromfile(path, np.int8, min(COPIED, size - start), offset=start)

    return Entry(name, GGMLType.I8, (size,), chunks)


def write_bundle(
    path: Path,
    config: ModelConfig,
    tokenizer_json: str,
    entries: Iterable[Entry],
    progress: Callable[[int], None] = lambda size: None,
) -> None:
    """Write a bundle at ``path``; ``progress`` is called with the bytes of every chunk.

    Raises OSError where the disk is full; the file is then incomplete and the caller's to remove.
    """
    entries = list(entries)
    writer = GGUFWriter(path, schema.ARCHITECTURE)
    writer.add_custom_alignment(schema.ALIGNMENT)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_name(config.name)
    for key, (kind, value) in values_of(config).items():
        _ADD[kind](writer, key, value)
    writer.add_string(schema.TOKENIZER_KEY, tokenizer_json)
    for entry in entries:
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), entry.size, raw_dtype=entry.type)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        file = writer.fout[0]
        for entry in entries:
            writer.write_padding(file, file.tell())
            written = 0
            for chunk in entry.chunks():
                np.ascontiguousarray(chunk).tofile(file)
                written += chunk.nbytes
                progress(chunk.nbytes)
            if written != entry.size:
                raise RuntimeError(f"{entry.name} gave {written} bytes instead of {entry.size}")
        writer.write_padding(file, file.tell())
    finally:
        writer.close()


def _add_integers(writer: GGUFWriter, key: str, values: tuple[int, ...]) -> None:
    writer.add_array(key, list(values))


_ADD: dict[str, Callable[[GGUFWriter, str, Any], None]] = {
    "u32": GGUFWriter.add_uint32,
    "f64": GGUFWriter.add_float64,
    "str": GGUFWriter.add_string,
    "u32[]": _add_integers,
}
