"""The single-file model: its keys and tensors, declared once and used by the writer and the reader.

A bundle is a GGUF with ``general.architecture = "csm"``. ``KEYS`` map the fields of
:class:`~csm_hybrid.model.config.ModelConfig` to GGUF keys with the values they may take;
:func:`bundle_tensors` and :func:`tower_tensors` give every tensor's name, shape and allowed types as
functions of the configuration. Shapes are row-major (NumPy order). Both towers are whole GGUFs inside
I8 tensors, which llama.cpp loads in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .codec_schema import tensor_shapes
from .config import MimiConfig, ModelConfig, TowerConfig
from .ggml import GGMLType

ARCHITECTURE = "csm"
VERSION = 1
"""Version of this layout (key ``csm.version``); a reader refuses any other."""
CONVERSION = 1
"""Version of the converter: raised when it makes another file of the same checkpoint, so that kept conversions are
made again."""
ALIGNMENT = 64
"""Bytes that tensor data is aligned to: a cache line, and a multiple of the 32 that llama.cpp maps on."""

ARCHITECTURE_KEY = "general.architecture"
NAME_KEY = "general.name"
VERSION_KEY = "csm.version"
TOKENIZER_KEY = "tokenizer.huggingface.json"
BACKBONE = "backbone.gguf"
DECODER = "decoder.gguf"
CODEC_PREFIX = "mimi."

FLOAT_TYPES = frozenset({GGMLType.F32, GGMLType.F16, GGMLType.BF16})
MATRIX_TYPES = FLOAT_TYPES | {
    GGMLType.Q8_0,
    GGMLType.Q6_K,
    GGMLType.Q5_K,
    GGMLType.Q4_K,
    GGMLType.Q5_0,
    GGMLType.Q5_1,
    GGMLType.Q4_0,
}
"""Types of weight matrices: what the recipes name, and what llama.cpp falls back to for odd widths."""
VECTOR_TYPES = frozenset({GGMLType.F32})
CODEC_TYPES = frozenset({GGMLType.F32, GGMLType.F16})


@dataclass(frozen=True)
class Key:
    """A GGUF key: its name under the section's prefix, the field it fills, its type and its limits.

    The limits are those of the engine (``csrc/``, which states them too): conversion and opening refuse what it
    would. They are generous, but keep products of sizes inside an int, and a hostile file from asking for terabytes.
    """

    name: str
    field: str
    kind: str  # "u32", "f64", "str" or "u32[]"
    low: float = 1
    high: float = 1 << 20


LEAST_FLOAT = 2.0**-149
"""The least float32 above 0."""
MODEL_KEYS = (
    Key("codebook_count", "codebooks", "u32", 2, 256),
    Key("audio_vocab_size", "audio_vocab", "u32"),
    Key("text_vocab_size", "text_vocab", "u32", high=1 << 24),
    Key("bos_token_id", "bos_id", "u32", 0, 1 << 24),
    Key("eos_token_id", "eos_id", "u32", 0, 1 << 24),
    Key("end_code", "end_code", "u32", 0),
    Key("prompt_template", "prompt_template", "str"),
)
SAMPLING_KEYS = (
    Key("temperature", "temperature", "f64", 0, 100),
    Key("top_k", "top_k", "u32", 1),
    Key("depth_temperature", "depth_temperature", "f64", 0, 100),
    Key("depth_top_k", "depth_top_k", "u32", 1),
)
TOWER_KEYS = (
    Key("block_count", "layers", "u32", high=512),
    Key("embedding_length", "width", "u32"),
    Key("attention.head_count", "heads", "u32", high=4096),
    Key("attention.head_count_kv", "kv_heads", "u32", high=4096),
    Key("attention.key_length", "head_dim", "u32", 2, 4096),
    Key("feed_forward_length", "ffn", "u32"),
    Key("attention.layer_norm_rms_epsilon", "norm_eps", "f64", LEAST_FLOAT, 1),
    Key("rope.freq_base", "rope_theta", "f64", 1, 1e12),
    Key("context_length", "positions", "u32", high=1 << 17),
)
ROPE_SCALING_KEYS = (
    Key("factor", "factor", "f64", 1e-6, 1e6),
    Key("low_freq_factor", "low_freq_factor", "f64", 1e-9, 1e9),
    Key("high_freq_factor", "high_freq_factor", "f64", 1e-9, 1e9),
    Key("original_context_length", "original_context", "f64", 1e-6, 1e12),
)
CODEC_WIDEST = 1 << 16
"""Channels of the codec's widest signal."""
CODEC_LONGEST = 1 << 20
"""Samples of a frame, and of a step of the codec's convolutions."""
MIMI_KEYS = (
    Key("sample_rate", "sample_rate", "u32"),
    Key("frame_rate", "frame_rate", "f64", 1 / CODEC_LONGEST, CODEC_LONGEST),
    Key("codebook_count", "codebooks", "u32", 2, 256),
    Key("semantic_codebook_count", "semantic_codebooks", "u32", 1, 255),
    Key("codebook_size", "codebook_size", "u32"),
    Key("codebook_dim", "codebook_dim", "u32", 1, CODEC_WIDEST),
    Key("width", "width", "u32", 1, CODEC_WIDEST),
    Key("filter_count", "filters", "u32", 1, CODEC_WIDEST),
    Key("ratios", "ratios", "u32[]", 1, 64),
    Key("kernel", "kernel", "u32", 1, 255),
    Key("residual_kernel", "residual_kernel", "u32", 1, 255),
    Key("last_kernel", "last_kernel", "u32", 1, 255),
    Key("residual_layer_count", "residual_layers", "u32", 1, 8),
    Key("dilation_growth", "dilation_growth", "u32", 1, 8),
    Key("compress", "compress", "u32", 1, CODEC_WIDEST),
    Key("block_count", "layers", "u32", 1, 256),
    Key("attention.head_count", "heads", "u32", 1, 1024),
    Key("attention.head_count_kv", "kv_heads", "u32", 1, 1024),
    Key("attention.key_length", "head_dim", "u32", 2, 4096),
    Key("feed_forward_length", "ffn", "u32", 1, CODEC_WIDEST),
    Key("attention.context_length", "context", "u32", 1, CODEC_WIDEST),
    Key("rope.freq_base", "rope_theta", "f64", 1, 1e12),
    Key("attention.layer_norm_epsilon", "norm_eps", "f64", LEAST_FLOAT, 1),
    Key("upsample_groups", "upsample_groups", "u32", 1, CODEC_WIDEST),
)
MAX_RATIOS = 8

MODEL_PREFIX = "csm."
SAMPLING_PREFIX = "csm.sampling."
BACKBONE_PREFIX = "csm.backbone."
DECODER_PREFIX = "csm.decoder."
ROPE_SCALING = "rope.scaling."  # after a tower's prefix
MIMI_PREFIX = "csm.mimi."


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that must be there: its name, row-major shape and the GGML types that are understood."""

    name: str
    shape: tuple[int, ...]
    types: frozenset[GGMLType]


def bundle_tensors(config: ModelConfig) -> Iterator[TensorSpec]:
    """The tables and the codec: all tensors of a bundle but the two embedded towers."""
    d_b, d_d = config.backbone.width, config.decoder.width
    codebooks, vocab = config.codebooks, config.audio_vocab
    yield TensorSpec("text_embd", (config.text_vocab, d_b), MATRIX_TYPES)
    yield TensorSpec("audio_embd", (codebooks * vocab, d_b), MATRIX_TYPES)  # row = code + codebook * vocab
    yield TensorSpec("projection", (d_d, d_b), MATRIX_TYPES)
    yield TensorSpec("heads", (codebooks - 1, vocab, d_d), MATRIX_TYPES)  # (out, in) per codebook 1..K-1
    for spec in codec_tensors(config.codec):
        yield TensorSpec(CODEC_PREFIX + spec.name, spec.shape, spec.types)


def tower_tensors(tower: TowerConfig, vocab: int, *, head: bool) -> Iterator[TensorSpec]:
    """llama.cpp's tensors of a Llama tower, Q/K rows in interleaved-pair order.

    ``token_embd.weight`` (vocab, width) is a stand-in that llama.cpp wants and nothing reads; with ``head``,
    ``output.weight`` (vocab, width) is the head of codebook 0.
    """
    width, ffn = tower.width, tower.ffn
    q_rows, kv_rows = tower.heads * tower.head_dim, tower.kv_heads * tower.head_dim
    yield TensorSpec("token_embd.weight", (vocab, width), MATRIX_TYPES)
    yield TensorSpec("rope_freqs.weight", (tower.head_dim // 2,), VECTOR_TYPES)
    for n in range(tower.layers):
        block = f"blk.{n}."
        yield TensorSpec(block + "attn_norm.weight", (width,), VECTOR_TYPES)
        yield TensorSpec(block + "attn_q.weight", (q_rows, width), MATRIX_TYPES)
        yield TensorSpec(block + "attn_k.weight", (kv_rows, width), MATRIX_TYPES)
        yield TensorSpec(block + "attn_v.weight", (kv_rows, width), MATRIX_TYPES)
        yield TensorSpec(block + "attn_output.weight", (width, q_rows), MATRIX_TYPES)
        yield TensorSpec(block + "ffn_norm.weight", (width,), VECTOR_TYPES)
        yield TensorSpec(block + "ffn_gate.weight", (ffn, width), MATRIX_TYPES)
        yield TensorSpec(block + "ffn_up.weight", (ffn, width), MATRIX_TYPES)
        yield TensorSpec(block + "ffn_down.weight", (width, ffn), MATRIX_TYPES)
    yield TensorSpec("output_norm.weight", (width,), VECTOR_TYPES)
    if head:
        yield TensorSpec("output.weight", (vocab, width), MATRIX_TYPES)


STAND_IN_VOCAB = 32
"""Rows of the depth decoder's stand-in vocabulary: it has no head and llama.cpp insists on one."""


def backbone_tensors(config: ModelConfig) -> Iterator[TensorSpec]:
    """The tensors of the embedded ``backbone.gguf``."""
    return tower_tensors(config.backbone, config.audio_vocab, head=True)


def decoder_tensors(config: ModelConfig) -> Iterator[TensorSpec]:
    """The tensors of the embedded ``decoder.gguf``."""
    return tower_tensors(config.decoder, STAND_IN_VOCAB, head=False)


def tower_values(tower: TowerConfig, vocab: int) -> dict[str, str | int | float]:
    """llama.cpp's keys of an embedded tower that must agree with ``csm.*``."""
    return {
        ARCHITECTURE_KEY: "llama",
        "llama.block_count": tower.layers,
        "llama.context_length": tower.positions,
        "llama.embedding_length": tower.width,
        "llama.feed_forward_length": tower.ffn,
        "llama.attention.head_count": tower.heads,
        "llama.attention.head_count_kv": tower.kv_heads,
        "llama.attention.key_length": tower.head_dim,
        "llama.attention.value_length": tower.head_dim,
        "llama.attention.layer_norm_rms_epsilon": float(tower.norm_eps),
        "llama.rope.dimension_count": tower.head_dim,
        "llama.rope.freq_base": float(tower.rope_theta),
        "llama.vocab_size": vocab,
        "tokenizer.ggml.model": "no_vocab",
    }


def codec_tensors(mimi: MimiConfig) -> Iterator[TensorSpec]:
    """The codec's tensors without their prefix: the codec's own list, matrices in one of CODEC_TYPES."""
    for name, shape in tensor_shapes(mimi).items():
        yield TensorSpec(name, shape, CODEC_TYPES if len(shape) > 1 else VECTOR_TYPES)
