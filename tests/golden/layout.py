"""Sizes of the tiny models, and the one permutation between the layouts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class TowerSizes:
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int


@dataclass(frozen=True)
class Sizes:
    """A tiny CSM."""

    backbone: TowerSizes = TowerSizes(layers=2, width=64, heads=4, kv_heads=2, head_dim=16, ffn=96)
    decoder: TowerSizes = TowerSizes(layers=2, width=32, heads=2, kv_heads=1, head_dim=16, ffn=64)
    codebooks: int = 5
    audio_vocab: int = 35
    text_vocab: int = 264
    codec_codebooks: int = 6
    codebook_size: int = 32
    codebook_dim: int = 16
    codec_width: int = 32
    codec_heads: int = 2
    codec_ffn: int = 48
    filters: int = 2


def halves(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """convert_csm.py's permutation: interleaved pairs to rotate-half."""
    count, width = rows.shape
    return rows.reshape(heads, count // heads // 2, 2, width).transpose(0, 2, 1, 3).reshape(count, width)
