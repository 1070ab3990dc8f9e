"""The codebook decoder in slow float64 NumPy, from the equations: one position at a time, nothing cached but
K and V.

Written from SesameAILabs/csm (models.py) and the Llama paper, apart from the code it judges.
"""

from __future__ import annotations

from collections.abc import Mapping

import gguf
import numpy as np

from csm_hybrid.model.bundle import TensorView
from csm_hybrid.model.config import ModelConfig


def dequantised(tensor: TensorView) -> np.ndarray:
    """A tensor of any GGML type as float64."""
    kind = gguf.GGMLQuantizationType(tensor.type)
    raw = np.ascontiguousarray(tensor.data)
    if kind == gguf.GGMLQuantizationType.F32:
        return raw.view(np.float32).astype(np.float64).reshape(tensor.shape)
    rows = raw.reshape(int(np.prod(tensor.shape[:-1])), -1)
    return gguf.quants.dequantize(rows, kind).astype(np.float64).reshape(tensor.shape)


def rounded(x: np.ndarray) -> np.ndarray:
    """x in blocks of 32, each rounded to 255 levels between its largest magnitude and minus it."""
    blocks = x.reshape(-1, 32)
    step = np.max(np.abs(blocks), axis=1, keepdims=True) / 127
    return (np.rint(blocks / np.where(step > 0, step, 1)) * step).reshape(-1)


class ReferenceDecoder:
    """Logits of one frame.

    ``round_activations``: what goes into a product with a matrix of a quantised type is rounded to 8 bits
    first.
    """

    def __init__(
        self, config: ModelConfig, tensors: Mapping[str, TensorView], *, round_activations: bool = False
    ) -> None:
        self.config = config
        floats = ("F32", "F16", "BF16")
        self.round = {
            name
            for name, t in tensors.items()
            if round_activations and gguf.GGMLQuantizationType(t.type).name not in floats
        }
        self.t = {name: dequantised(tensor) for name, tensor in tensors.items()}
        self.divisors = self.t.get("rope_freqs.weight", config.decoder.rope_divisors().astype(np.float64))

    def logits(self, hidden: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Teacher-forced: hidden (d_b,), codes (K,); returns (K - 1, V) float64."""
        self.keys: list[list[np.ndarray]] = [[] for _ in range(self.config.decoder.layers)]
        self.values: list[list[np.ndarray]] = [[] for _ in range(self.config.decoder.layers)]
        self._step(hidden.astype(np.float64))
        out = []
        for codebook in range(self.config.codebooks - 1):
            row = codes[codebook] + codebook * self.config.audio_vocab
            last = self._step(self.t["audio_embd"][row])
            out.append(self.t["heads"][codebook] @ (rounded(last) if "heads" in self.round else last))
        return np.array(out)

    def _product(self, name: str, x: np.ndarray) -> np.ndarray:
        return self.t[name] @ (rounded(x) if name in self.round else x)

    def _step(self, vector: np.ndarray) -> np.ndarray:
        x = self._product("projection", vector)
        for layer in range(self.config.decoder.layers):
            blk = f"blk.{layer}."
            x = x + self._attention(layer, blk, self._norm(x, blk + "attn_norm.weight"))
            h = self._norm(x, blk + "ffn_norm.weight")
            gate = self._product(blk + "ffn_gate.weight", h)
            up = self._product(blk + "ffn_up.weight", h)
            x = x + self._product(blk + "ffn_down.weight", gate / (1 + np.exp(-gate)) * up)
        return self._norm(x, "output_norm.weight")

    def _attention(self, layer: int, blk: str, h: np.ndarray) -> np.ndarray:
        tower = self.config.decoder
        position = len(self.keys[layer])
        q = self._product(blk + "attn_q.weight", h).reshape(tower.heads, tower.head_dim)
        k = self._product(blk + "attn_k.weight", h).reshape(tower.kv_heads, tower.head_dim)
        v = self._product(blk + "attn_v.weight", h).reshape(tower.kv_heads, tower.head_dim)
        self.keys[layer].append(np.array([self._turned(row, position) for row in k]))
        self.values[layer].append(v)
        out = []
        for head in range(tower.heads):
            kv = head // (tower.heads // tower.kv_heads)
            query = self._turned(q[head], position)
            scores = np.array([query @ keys[kv] for keys in self.keys[layer]]) / np.sqrt(tower.head_dim)
            p = np.exp(scores - scores.max())
            out.append(sum(w * values[kv] for w, values in zip(p / p.sum(), self.values[layer], strict=True)))
        return self._product(blk + "attn_output.weight", np.concatenate(out))

    def _turned(self, row: np.ndarray, position: int) -> np.ndarray:
        """Pair (2 i, 2 i + 1) as a complex number, turned by its angle."""
        i = np.arange(len(row) // 2)
        angle = position * self.config.decoder.rope_theta ** (-2 * i / len(row)) / self.divisors
        turned = (row[0::2] + 1j * row[1::2]) * np.exp(1j * angle)
        return np.stack([turned.real, turned.imag], axis=1).reshape(-1)

    def _norm(self, x: np.ndarray, weight: str) -> np.ndarray:
        return x / np.sqrt(np.mean(x**2) + self.config.decoder.norm_eps) * self.t[weight]
