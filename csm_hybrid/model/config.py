"""Every number of a model, read from its file: one frozen value that all other modules take.

Nothing outside this module may assume a width, a vocabulary, a token id or a frame rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3 scaling of the rotary frequencies (Llama 3.1's reference code, ``apply_scaling``).

    ``original_context`` counts positions. CSM's two layouts of checkpoints write the same frequencies with
    different numbers: only the ratios to ``original_context`` matter, and ``normalised`` makes them equal.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: float

    def normalised(self) -> RopeScaling:
        """The same frequencies with ``low_freq_factor`` 1: 0.125 / 0.5 / 1024 becomes 1 / 4 / 8192."""
        return RopeScaling(
            factor=self.factor,
            low_freq_factor=1.0,
            high_freq_factor=self.high_freq_factor / self.low_freq_factor,
            original_context=self.original_context / self.low_freq_factor,
        )


@dataclass(frozen=True)
class TowerConfig:
    """Sizes of one Llama tower (the backbone or the depth decoder)."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    positions: int

    def rope_divisors(self) -> NDArray[np.float32]:
        """Divisors of the rotary frequencies, (head_dim // 2,) float32: llama.cpp's ``rope_freqs.weight``.

        Pair i turns by ``position * theta ** (-2 i / head_dim) / divisor[i]`` radians.
        """
        pairs = self.head_dim // 2
        divisors = np.ones(pairs, dtype=np.float64)
        scaling = self.rope_scaling
        if scaling is None:
            return divisors.astype(np.float32)
        for i in range(pairs):
            wavelength = 2 * math.pi * self.rope_theta ** (2 * i / self.head_dim)
            turns = scaling.original_context / wavelength
            if turns > scaling.high_freq_factor:
                continue
            if turns < scaling.low_freq_factor:
                divisors[i] = scaling.factor
                continue
            mix = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
            divisors[i] = 1 / ((1 - mix) / scaling.factor + mix)
        return divisors.astype(np.float32)


@dataclass(frozen=True)
class MimiConfig:
    """Sizes of the Mimi codec (kyutai moshi, ``models/loaders.py``)."""

    sample_rate: int
    frame_rate: float
    codebooks: int
    semantic_codebooks: int
    codebook_size: int
    codebook_dim: int
    width: int
    filters: int
    ratios: tuple[int, ...]  # the decoder's order, largest first: 8, 6, 5, 4
    kernel: int
    residual_kernel: int
    last_kernel: int
    residual_layers: int
    dilation_growth: int
    compress: int
    layers: int  # of each of the two transformers
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    context: int  # positions that attention looks back on, itself included
    rope_theta: float
    norm_eps: float
    upsample_groups: int

    @property
    def hop(self) -> int:
        """Samples per step of the convolutional encoder (960 for Mimi: 25 Hz)."""
        return math.prod(self.ratios)

    @property
    def frame_samples(self) -> int:
        """Samples per frame of codes (1920 for Mimi: 12.5 Hz)."""
        return round(self.sample_rate / self.frame_rate)

    @property
    def resample_stride(self) -> int:
        """Steps of the encoder per frame of codes (2 for Mimi)."""
        return self.frame_samples // self.hop


@dataclass(frozen=True)
class Sampling:
    """How a code is drawn: from the ``top_k`` highest logits / temperature; temperature 0 is greedy.

    ``temperature`` and ``top_k`` are for code 0, which the backbone gives; ``depth_*`` are for the codebook
    decoder's codes and the same unless given.
    """

    temperature: float
    top_k: int
    depth_temperature: float = -1.0  # negative: as for code 0
    depth_top_k: int = -1

    def __post_init__(self) -> None:
        if self.depth_temperature < 0:
            object.__setattr__(self, "depth_temperature", self.temperature)
        if self.depth_top_k < 0:
            object.__setattr__(self, "depth_top_k", self.top_k)


@dataclass(frozen=True)
class ModelConfig:
    """A whole model: both towers, vocabularies, prompt, sampling defaults and codec."""

    name: str
    backbone: TowerConfig
    decoder: TowerConfig
    codebooks: int
    audio_vocab: int  # entries per codebook, reserved ones included (2051)
    text_vocab: int
    bos_id: int  # begins a text segment
    eos_id: int  # ends a text segment; the first frame is sampled at its position
    end_code: int  # a frame of these ends the speech (0)
    prompt_template: str  # "[{speaker}]{text}"
    sampling: Sampling | None  # the file's own defaults, from generation_config.json
    codec: MimiConfig

    @property
    def frame_rate(self) -> float:
        """Frames per second (12.5)."""
        return self.codec.frame_rate
