"""A Llama tower in slow float64 NumPy, from the equations: one position at a time, nothing cached but K and V.

Written from the Llama paper (Touvron et al. 2023), apart from the code it judges.
"""

from __future__ import annotations

from collections.abc import Mapping

import gguf
import numpy as np

from csm_hybrid.model.bundle import TensorView
from csm_hybrid.model.config import TowerConfig


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


class ReferenceTower:
    """One sequence.

    ``round_activations``: what goes into a product with a matrix of a quantised type is rounded to 8 bits
    first.
    """

    def __init__(
        self, config: TowerConfig, tensors: Mapping[str, TensorView], *, round_activations: bool = False
    ) -> None:
        self.config = config
        floats = ("F32", "F16", "BF16")
        self.round = {
            name
            for name, t in tensors.items()
            if round_activations and gguf.GGMLQuantizationType(t.type).name not in floats
        }
        self.t = {name: dequantised(tensor) for name, tensor in tensors.items()}
        self.divisors = self.t.get("rope_freqs.weight", config.rope_divisors().astype(np.float64))
        self.forget()

    def forget(self) -> None:
        """Back to position 0."""
        self.keys: list[list[np.ndarray]] = [[] for _ in range(self.config.layers)]
        self.values: list[list[np.ndarray]] = [[] for _ in range(self.config.layers)]

    def product(self, name: str, x: np.ndarray) -> np.ndarray:
        """A matrix of the tower, or one that belongs to it, by a vector."""
        return self.apply(self.t[name], name, x)

    def apply(self, matrix: np.ndarray, name: str, x: np.ndarray) -> np.ndarray:
        """A part of the tensor ``name`` by a vector."""
        return np.asarray(matrix @ (rounded(x) if name in self.round else x))

    def step(self, x: np.ndarray) -> np.ndarray:
        """One position: its input (width,) to its state after the final norm (width,), in float64."""
        for layer in range(self.config.layers):
            blk = f"blk.{layer}."
            x = x + self._attention(layer, blk, self._norm(x, blk + "attn_norm.weight"))
            h = self._norm(x, blk + "ffn_norm.weight")
            gate = self.product(blk + "ffn_gate.weight", h)
            up = self.product(blk + "ffn_up.weight", h)
            x = x + self.product(blk + "ffn_down.weight", gate / (1 + np.exp(-gate)) * up)
        return self._norm(x, "output_norm.weight")

    def _attention(self, layer: int, blk: str, h: np.ndarray) -> np.ndarray:
        tower = self.config
        position = len(self.keys[layer])
        q = self.product(blk + "attn_q.weight", h).reshape(tower.heads, tower.head_dim)
        k = self.product(blk + "attn_k.weight", h).reshape(tower.kv_heads, tower.head_dim)
        v = self.product(blk + "attn_v.weight", h).reshape(tower.kv_heads, tower.head_dim)
        self.keys[layer].append(np.array([self._turned(row, position) for row in k]))
        self.values[layer].append(v)
        out = []
        for head in range(tower.heads):
            kv = head // (tower.heads // tower.kv_heads)
            query = self._turned(q[head], position)
            scores = np.array([query @ keys[kv] for keys in self.keys[layer]]) / np.sqrt(tower.head_dim)
            p = np.exp(scores - scores.max())
            out.append(sum(w * values[kv] for w, values in zip(p / p.sum(), self.values[layer], strict=True)))
        return self.product(blk + "attn_output.weight", np.concatenate(out))

    def _turned(self, row: np.ndarray, position: int) -> np.ndarray:
        """Pair (2 i, 2 i + 1) as a complex number, turned by its angle."""
        i = np.arange(len(row) // 2)
        angle = position * self.config.rope_theta ** (-2 * i / len(row)) / self.divisors
        turned = (row[0::2] + 1j * row[1::2]) * np.exp(1j * angle)
        return np.stack([turned.real, turned.imag], axis=1).reshape(-1)

    def _norm(self, x: np.ndarray, weight: str) -> np.ndarray:
        return x / np.sqrt(np.mean(x**2) + self.config.norm_eps) * self.t[weight]
