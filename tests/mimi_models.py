"""Small random codecs for the tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from csm_hybrid.model.codec_schema import tensor_shapes
from csm_hybrid.model.config import MimiConfig

TINY = MimiConfig(
    sample_rate=300,
    frame_rate=12.5,
    codebooks=5,
    semantic_codebooks=1,
    codebook_size=13,
    codebook_dim=6,
    width=16,
    filters=4,
    ratios=(4, 3),
    kernel=5,
    residual_kernel=3,
    last_kernel=3,
    residual_layers=2,
    dilation_growth=2,
    compress=2,
    layers=2,
    heads=2,
    kv_heads=2,
    head_dim=8,
    ffn=24,
    context=7,
    rope_theta=10000.0,
    norm_eps=1e-5,
    upsample_groups=16,
)
"""Two dilated residual layers, channel counts that fill no register, a context that a few frames cross."""

GROUPED = replace(TINY, kv_heads=1, upsample_groups=4, semantic_codebooks=2, residual_layers=1, context=6)
"""Shared keys, upsampling in groups, two semantic codebooks."""

REAL = MimiConfig(
    sample_rate=24000,
    frame_rate=12.5,
    codebooks=32,
    semantic_codebooks=1,
    codebook_size=2048,
    codebook_dim=256,
    width=512,
    filters=64,
    ratios=(8, 6, 5, 4),
    kernel=7,
    residual_kernel=3,
    last_kernel=3,
    residual_layers=1,
    dilation_growth=2,
    compress=2,
    layers=8,
    heads=8,
    kv_heads=8,
    head_dim=64,
    ffn=2048,
    context=250,
    rope_theta=10000.0,
    norm_eps=1e-5,
    upsample_groups=512,
)
"""Kyutai's Mimi (moshi, models/loaders.py)."""


def random_tensors(config: MimiConfig, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Weights that keep activations near one through every layer, so that each of them matters."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, shape in tensor_shapes(config).items():
        values = rng.standard_normal(shape)
        if name.endswith("norm.weight"):
            values = 1 + 0.2 * values
        elif name.endswith("_scale"):
            values = 0.3 + 0.1 * values
        elif len(shape) == 1:
            values = 0.1 * values
        elif name == "upsample.weight":
            values = values / np.sqrt(2 * config.width / config.upsample_groups)
        elif name.endswith("up.weight") and len(shape) == 3:
            values = values * np.sqrt(1.5 / (2 * shape[0]))
        elif ".codebook." not in name:
            values = values * np.sqrt(1.5 / np.prod(shape[1:]))
        tensors[name] = values.astype(np.float32)
    return tensors


def random_codes(config: MimiConfig, frames: int, seed: int = 1, streams: int = 1) -> NDArray[np.int32]:
    """(streams, frames, codebooks)."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, config.codebook_size, (streams, frames, config.codebooks)).astype(np.int32)
