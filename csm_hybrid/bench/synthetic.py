"""Full-size models with random weights, made on the spot in seconds: for timing, never for listening.

They go through the same schema and writer as real ones, with llama.cpp's own choice of type for every
tensor of a mix, and their weights are scaled so that activations neither vanish nor blow up. A few hundred
random rows are quantised per shape and drawn from again and again: speed does not depend on the values.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from csm_hybrid.quantize.checkpoint_config import LLAMA3_SCALING, MIMI, NAMED_TOWERS, PROMPT_TEMPLATE
from csm_hybrid.quantize.recipe import DEFAULT, Recipe, fallback, recipe_named
from csm_hybrid.quantize.safetensors import Array
from csm_hybrid.quantize.staging import output_directory
from csm_hybrid.quantize.towers import quantize_tower, tower_header, write_tower
from csm_hybrid.quantize.write import Entry, write_bundle

from ..checkpoints.conversions import kept
from ..errors import InputError
from ..model import file_schema as schema
from ..model.config import ModelConfig, TowerConfig
from ..model.file_schema import TensorSpec
from ..model.ggml import GGMLType, parse_gguf, quantize_rows

POOL_ROWS = 256
"""Random rows that are quantised per type and width."""
SEED = 0
LOGIT_SPREAD = 2.0
"""Standard deviation of the heads' logits, in the range of a trained model's."""

CSM_1B = ModelConfig(
    name="synthetic csm-1b",
    backbone=NAMED_TOWERS["llama-1B"],
    decoder=replace(NAMED_TOWERS["llama-100M"], positions=33),
    codebooks=32,
    audio_vocab=2051,
    text_vocab=128256,
    bos_id=256,
    eos_id=257,
    end_code=0,
    prompt_template=PROMPT_TEMPLATE,
    sampling=None,
    codec=MIMI,
)
_MARVIS_BACKBONE = TowerConfig(
    layers=6,
    width=1536,
    heads=12,
    kv_heads=3,
    head_dim=128,
    ffn=8192,
    norm_eps=1e-5,
    rope_theta=500_000.0,
    rope_scaling=LLAMA3_SCALING,
    positions=2048,
)
MODELS: dict[str, ModelConfig] = {
    "csm-1b": CSM_1B,
    "marvis-250m": replace(
        CSM_1B,
        name="synthetic marvis-250m",
        backbone=_MARVIS_BACKBONE,
        decoder=replace(CSM_1B.decoder, ffn=4096),
    ),
}
"""Sizes by name; Marvis TTS is CSM's smaller relative."""


def synthetic_model(spec: str) -> Path:
    """The cached bundle of ``NAME[:TYPE]``, such as ``csm-1b:q4_k_m``, made now if it is not there.

    Raises InputError for unknown names, OutputError where the cache cannot be written.
    """
    name, _, type_name = spec.partition(":")
    if name not in MODELS:
        raise InputError(f"no synthetic model {name!r}; there are {', '.join(MODELS)}")
    recipe = recipe_named(type_name or DEFAULT)
    config = MODELS[name]
    return kept_synthetic(name, config, recipe)


def kept_synthetic(name: str, config: ModelConfig, recipe: Recipe) -> Path:
    """The cached model of any sizes, made now if it is not there. Raises OutputError, as ``synthetic_model``."""
    key = hashlib.sha256(f"{schema.VERSION} {SEED} {config}".encode()).hexdigest()[:12]
    return kept(f"synthetic-{name}-{recipe.name}-{key}.gguf", lambda path: make_synthetic(config, recipe, path))


def make_synthetic(config: ModelConfig, recipe: Recipe, output: Path) -> None:
    """Write a model of any sizes with random weights; ``output`` appears whole or not at all.

    Raises OutputError where it cannot be written.
    """
    maker = _Maker()
    with output_directory(output) as work:
        entries = [
            _tower_entry(maker, config, recipe, name, work / "header.gguf")
            for name in (schema.BACKBONE, schema.DECODER)
        ]
        for spec in schema.bundle_tensors(config):
            if spec.name.startswith(schema.CODEC_PREFIX):
                entries.append(Entry(spec.name, GGMLType.F32, spec.shape, maker.chunks(spec, GGMLType.F32)))
            else:
                kind = recipe.table_type(spec.name, spec.shape[-1])
                entries.append(Entry(spec.name, kind, spec.shape, maker.chunks(spec, kind)))
        finished = work / "model.gguf"
        write_bundle(finished, config, _byte_tokenizer(), entries)
        finished.replace(output)


class _Maker:
    """Draws tensors; rows of one width, type and scale come from one pool."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(SEED)
        self.pools: dict[tuple[int, int, float], NDArray[np.uint8]] = {}

    def chunks(self, spec: TensorSpec, kind: GGMLType) -> Callable[[], Iterator[NDArray[Any]]]:
        """The tensor's bytes, a group of rows at a time."""

        def vector() -> Iterator[NDArray[Any]]:
            yield _vector(spec, self.rng)

        def matrix() -> Iterator[NDArray[Any]]:
            # A convolution's row is all that one output reads: (out, in * kernel).
            columns = spec.shape[-1] if kind != GGMLType.F32 else math.prod(spec.shape[1:])
            rows = math.prod(spec.shape) // columns
            pool = self._pool(kind, columns, _spread(spec, columns))
            step = max(1, (32 << 20) // pool.shape[1])
            for start in range(0, rows, step):
                yield pool[self.rng.integers(0, len(pool), min(step, rows - start))]

        return vector if len(spec.shape) == 1 else matrix

    def _pool(self, kind: GGMLType, columns: int, spread: float) -> NDArray[np.uint8]:
        key = (int(kind), columns, spread)
        if key not in self.pools:
            rows = self.rng.standard_normal((POOL_ROWS, columns), dtype=np.float32) * np.float32(spread)
            self.pools[key] = quantize_rows(kind, rows)
        return self.pools[key]


def _spread(spec: TensorSpec, columns: int) -> float:
    """Standard deviation of a matrix's weights: activations keep their size."""
    if spec.name in ("text_embd", "audio_embd") or "codebook" in spec.name:
        return 0.5
    gain = LOGIT_SPREAD if spec.name in ("heads", "output.weight") else 1.0
    return gain / math.sqrt(columns)


def _vector(spec: TensorSpec, rng: np.random.Generator) -> NDArray[np.float32]:
    """Norms near one, layer scales small, biases near zero."""
    values = rng.standard_normal(spec.shape, dtype=np.float32) * np.float32(0.01)
    if spec.name.endswith("norm.weight"):
        return values + np.float32(1)
    return values + np.float32(0.1) if spec.name.endswith("_scale") else values


def _tower_entry(maker: _Maker, config: ModelConfig, recipe: Recipe, name: str, scratch: Path) -> Entry:
    """An embedded tower that is made while the bundle is written; ``scratch`` is a file to use meanwhile."""
    head = name == schema.BACKBONE
    tower, vocab = (config.backbone, config.audio_vocab) if head else (config.decoder, schema.STAND_IN_VOCAB)
    mixed = _types_in_mix(tower, recipe, head=head)
    specs = list(schema.tower_tensors(tower, vocab, head=head))
    types = [fallback(mixed[spec.name], spec.shape[-1]) for spec in specs]
    header, offsets, size = tower_header(scratch, tower, vocab, specs, types)

    def chunks() -> Iterator[NDArray[Any]]:
        yield np.frombuffer(header, np.uint8)
        written = len(header)
        for spec, kind, offset in zip(specs, types, offsets, strict=True):
            yield np.zeros(offset - written, np.uint8)
            written = offset
            made = tower.rope_divisors() if spec.name == "rope_freqs.weight" else None
            for chunk in [made] if made is not None else maker.chunks(spec, kind)():
                yield chunk
                written += chunk.nbytes
        yield np.zeros(size - written, np.uint8)

    return Entry(name, GGMLType.I8, (size,), chunks)


def _types_in_mix(tower: TowerConfig, recipe: Recipe, *, head: bool) -> dict[str, GGMLType]:
    """llama.cpp's type of every tensor, asked by quantising a narrow tower of as many layers.

    Its choices depend on a tensor's name, its layer and the number of heads to a key/value head.
    """
    ratio = tower.heads // tower.kv_heads
    narrow = replace(tower, width=256, heads=ratio, kv_heads=1, head_dim=256, ffn=256)
    shapes = {spec.name: spec.shape for spec in schema.tower_tensors(narrow, 32, head=head)}

    def load(name: str) -> Array:
        return Array(GGMLType.F16, np.zeros(shapes[name], np.float16))

    with tempfile.TemporaryDirectory() as folder:
        plain, mixed = Path(folder) / "plain.gguf", Path(folder) / "mixed.gguf"
        write_tower(plain, narrow, 32, load, head=head)
        quantize_tower(plain, mixed, recipe.towers, narrow.width)
        header = parse_gguf(np.fromfile(mixed, np.uint8))
    return {name: GGMLType(info.type) for name, info in header.tensors.items()}


def _byte_tokenizer() -> str:
    """A ``tokenizer.json`` of the 256 bytes, then the two ends of a text segment."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ends = ("<|begin_of_text|>", "<|end_of_text|>")
    made.add_special_tokens([AddedToken(end, normalized=False, special=True) for end in ends])
    return str(made.to_str())
