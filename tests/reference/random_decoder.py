"""Random towers of any size and type, with weights scaled so that logits are not flat."""

from __future__ import annotations

import gguf
import numpy as np

from csm_hybrid.model.bundle import TensorView
from csm_hybrid.model.config import MimiConfig, ModelConfig, RopeScaling, TowerConfig
from csm_hybrid.model.ggml import GGMLType, quantize_rows

# A depth decoder takes nothing from the codec's configuration.
NO_CODEC = MimiConfig(
    sample_rate=24000, frame_rate=12.5, codebooks=1, semantic_codebooks=1, codebook_size=1, codebook_dim=1,
    width=1, filters=1, ratios=(1,), kernel=1, residual_kernel=1, last_kernel=1, residual_layers=1,
    dilation_growth=1, compress=1, layers=1, heads=1, kv_heads=1, head_dim=2, ffn=1, context=1,
    rope_theta=1.0, norm_eps=1e-5, upsample_groups=1,
)  # fmt: skip


def tensor_view(name: str, values: np.ndarray, kind: int) -> TensorView:
    """Float values as a tensor of a GGML type."""
    rows = np.ascontiguousarray(values, np.float32).reshape(-1, values.shape[-1])
    if kind in (GGMLType.F32, GGMLType.F16, GGMLType.BF16):
        data = gguf.quants.quantize(rows, GGMLType(kind)).view(np.uint8)
    else:
        data = quantize_rows(kind, rows)
    return TensorView(name, int(kind), values.shape, np.ascontiguousarray(data).reshape(-1))


def random_config(
    *,
    layers: int = 2,
    width: int = 48,
    heads: int = 6,
    kv_heads: int = 2,
    head_dim: int = 10,
    ffn: int = 72,
    codebooks: int = 7,
    vocab: int = 37,
    input_width: int = 56,
) -> ModelConfig:
    """Sizes that are no multiples of 16 or 32 unless asked for."""
    scaling = RopeScaling(factor=32.0, low_freq_factor=0.001953125, high_freq_factor=0.0078125, original_context=16)
    tower = TowerConfig(
        layers=layers, width=width, heads=heads, kv_heads=kv_heads, head_dim=head_dim, ffn=ffn, norm_eps=1e-5,
        rope_theta=500000.0, rope_scaling=scaling, positions=codebooks + 1,
    )  # fmt: skip
    backbone = TowerConfig(
        layers=1, width=input_width, heads=1, kv_heads=1, head_dim=2, ffn=1, norm_eps=1e-5,
        rope_theta=500000.0, rope_scaling=scaling, positions=2048,
    )  # fmt: skip
    return ModelConfig(
        name="random", backbone=backbone, decoder=tower, codebooks=codebooks, audio_vocab=vocab, text_vocab=8,
        bos_id=0, eos_id=1, end_code=0, prompt_template="{text}", sampling=None, codec=NO_CODEC,
    )  # fmt: skip


class _Weights:
    """Float values by name, drawn one after the other."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.values: dict[str, np.ndarray] = {}

    def matrix(self, name: str, *shape: int, gain: float = 1.0) -> None:
        scale = np.float32(gain / np.sqrt(shape[-1]))
        self.values[name] = self.rng.standard_normal(shape, dtype=np.float32) * scale

    def vector(self, name: str, n: int) -> None:
        self.values[name] = 1 + 0.2 * self.rng.standard_normal(n, dtype=np.float32)

    def tower(self, tower: TowerConfig) -> None:
        self.vector("output_norm.weight", tower.width)
        for layer in range(tower.layers):
            prefix = f"blk.{layer}."
            self.vector(prefix + "attn_norm.weight", tower.width)
            self.vector(prefix + "ffn_norm.weight", tower.width)
            self.matrix(prefix + "attn_q.weight", tower.heads * tower.head_dim, tower.width, gain=2)
            self.matrix(prefix + "attn_k.weight", tower.kv_heads * tower.head_dim, tower.width, gain=2)
            self.matrix(prefix + "attn_v.weight", tower.kv_heads * tower.head_dim, tower.width)
            self.matrix(prefix + "attn_output.weight", tower.width, tower.heads * tower.head_dim)
            self.matrix(prefix + "ffn_gate.weight", tower.ffn, tower.width)
            self.matrix(prefix + "ffn_up.weight", tower.ffn, tower.width)
            self.matrix(prefix + "ffn_down.weight", tower.width, tower.ffn)

    def tensors(self, kind: int) -> dict[str, TensorView]:
        return {n: tensor_view(n, v, GGMLType.F32 if v.ndim == 1 else kind) for n, v in self.values.items()}


def random_tensors(config: ModelConfig, kind: int = GGMLType.F32, *, seed: int = 0) -> dict[str, TensorView]:
    """All tensors that a depth decoder takes, matrices of GGML type ``kind``."""
    weights, width = _Weights(seed), config.decoder.width
    weights.matrix("audio_embd", config.codebooks * config.audio_vocab, config.backbone.width, gain=8)
    weights.matrix("projection", width, config.backbone.width, gain=2)
    weights.matrix("heads", config.codebooks - 1, config.audio_vocab, width, gain=3)
    weights.tower(config.decoder)
    return weights.tensors(kind)


def random_backbone_tensors(config: ModelConfig, kind: int = GGMLType.F32, *, seed: int = 0) -> dict[str, TensorView]:
    """All tensors that a backbone takes, matrices of GGML type ``kind``."""
    weights = _Weights(seed)
    weights.matrix("output.weight", config.audio_vocab, config.backbone.width, gain=3)
    weights.tower(config.backbone)
    return weights.tensors(kind)
