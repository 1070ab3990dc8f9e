"""The conversion: checkpoint in, single-file model out, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csm_hybrid.model import file_schema as schema
from csm_hybrid.model.bundle import Bundle
from csm_hybrid.model.codec_schema import stands_half
from csm_hybrid.model.ggml import GGMLType, quantize_rows

from .progress import Progress, Silent
from .recipe import Recipe
from .safetensors import Array
from .source import Checkpoint
from .staging import output_directory
from .towers import quantize_tower, write_tower
from .write import Entry, file_entry, write_bundle

Importance = Mapping[str, Mapping[str, NDArray[np.float32]]]  # embedded GGUF -> tensor -> (columns,)

CONVERTED = 16 << 20
"""Values of a table that are converted at a time (64 MB in float32)."""


def convert(
    checkpoint: Checkpoint,
    output: Path,
    recipe: Recipe,
    *,
    codec_type: GGMLType = GGMLType.F32,
    importance: Importance | None = None,
    progress: Progress | None = None,
) -> None:
    """Write ``checkpoint`` to ``output`` by ``recipe``, the codec in F32 or F16.

    All work happens in a hidden directory beside ``output``; the file is opened once as a check and renamed into
    place at the end. Any number of threads gives the same bytes. ``importance`` weighs the columns of a tower's
    tensors, (columns,) float32 each.
    Raises OutputError where the place cannot be written or the disk is full, ModelInvalid for weights that are NaN
    or infinite, EngineError where llama.cpp refuses a tower.
    """
    progress = progress or Silent()
    with output_directory(output) as work:
        towers = {
            name: _tower(checkpoint, name, work, recipe, importance=(importance or {}).get(name), progress=progress)
            for name in (schema.BACKBONE, schema.DECODER)
        }
        entries = [file_entry(name, path) for name, path in towers.items()]
        entries += _tables(checkpoint, recipe)
        entries += _codec(checkpoint, codec_type)
        finished = work / "model.gguf"
        with progress.stage("writing the model", sum(entry.size for entry in entries)) as advance:
            write_bundle(finished, checkpoint.config, checkpoint.tokenizer_json, entries, advance)
        Bundle.open(finished).close()
        finished.replace(output)


def _tower(
    checkpoint: Checkpoint,
    name: str,
    work: Path,
    recipe: Recipe,
    *,
    importance: Mapping[str, NDArray[np.float32]] | None,
    progress: Progress,
) -> Path:
    """The quantised GGUF of one tower, in ``work``."""
    config = checkpoint.config
    head = name == schema.BACKBONE
    tower = config.backbone if head else config.decoder
    vocab = config.audio_vocab if head else schema.STAND_IN_VOCAB
    plain, quantised = work / f"plain-{name}", work / name
    label = "backbone" if head else "depth decoder"
    count = sum(1 for _ in schema.tower_tensors(tower, vocab, head=head))
    with progress.stage(f"reading the {label}", count) as advance:

        def load(tensor: str) -> Any:
            return checkpoint.weights.tower_tensor(name, tensor, tower)

        write_tower(plain, tower, vocab, load, head=head, progress=lambda: advance(1))
    with progress.stage(f"quantising the {label} to {recipe.name}", count) as advance:
        quantize_tower(
            plain, quantised, recipe.towers, tower.width, importance=importance, progress=lambda: advance(1)
        )
    plain.unlink()
    return quantised


def _tables(checkpoint: Checkpoint, recipe: Recipe) -> list[Entry]:
    entries = []
    for spec in schema.bundle_tensors(checkpoint.config):
        if spec.name.startswith(schema.CODEC_PREFIX):
            continue
        kind = recipe.table_type(spec.name, spec.shape[-1])
        entries.append(Entry(spec.name, kind, spec.shape, _table_chunks(checkpoint, spec.name, kind)))
    return entries


def _table_chunks(checkpoint: Checkpoint, name: str, kind: GGMLType) -> Callable[[], Iterator[NDArray[Any]]]:
    def chunks() -> Iterator[NDArray[Any]]:
        array = checkpoint.weights.table(name)
        # Rows in groups: the heads come as a transposed view, which reshape(-1, columns) would copy whole.
        groups = array.values if array.values.ndim == 3 else array.values[None]
        for group in groups:
            step = max(1, CONVERTED // group.shape[-1])
            for start in range(0, len(group), step):
                part = replace(array, values=group[start : start + step]).checked()
                yield quantize_rows(kind, part.float32())

    return chunks


def _codec(checkpoint: Checkpoint, codec_type: GGMLType) -> list[Entry]:
    entries = []
    for spec in schema.codec_tensors(checkpoint.config.codec):
        kind = codec_type if stands_half(spec.name) else GGMLType.F32
        exact = Array(GGMLType.F32, checkpoint.codec[spec.name], f"of the codec, {spec.name},").checked()
        values = exact.values.astype(np.float32 if kind == GGMLType.F32 else np.float16, copy=False)
        name = schema.CODEC_PREFIX + spec.name

        def chunks(values: NDArray[Any] = values) -> list[NDArray[Any]]:
            return [values]

        entries.append(Entry(name, kind, spec.shape, chunks))
    return entries
