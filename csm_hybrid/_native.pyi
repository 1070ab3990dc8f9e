"""Types of the extension module (csrc/bindings)."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from csm_hybrid.model.config import MimiConfig
from csm_hybrid.model.config import TowerConfig as _TowerSizes

# ---- instruction sets, thread pool (module.cpp) ----

def isa() -> str: ...
def available_isas() -> list[str]: ...

class ThreadPool:
    def __init__(self, *, threads: int) -> None: ...
    @property
    def threads(self) -> int: ...

# ---- sizes of models (configs.cpp) ----

def codec_problems(config: MimiConfig) -> list[str]: ...
def tower_problems(config: _TowerSizes) -> list[str]: ...

# ---- the machine (machine.cpp) ----

def measure_read(*, pool: ThreadPool, bytes: int, samples: int, seconds: float) -> list[float]: ...
def measure_peak(*, pool: ThreadPool, arithmetic: str, samples: int, seconds: float) -> list[float]: ...

# ---- codec (mimi.cpp) ----

class MimiDecoderState:
    @property
    def frames(self) -> int: ...
    @property
    def bytes(self) -> int: ...

class MimiDecoder:
    def __init__(
        self, *, config: MimiConfig, tensors: dict[str, NDArray[np.floating]], pool: ThreadPool | None = None
    ) -> None: ...
    def new_state(self) -> MimiDecoderState: ...
    def decode(
        self, *, states: list[MimiDecoderState], codes: NDArray[np.int32], codebooks: int = 0
    ) -> NDArray[np.float32]: ...
    def measure(self, *, on: bool) -> None: ...
    def stages(self) -> dict[str, tuple[float, float, float]]: ...

class MimiEncoderState:
    @property
    def frames(self) -> int: ...
    @property
    def bytes(self) -> int: ...

class MimiEncoder:
    def __init__(
        self, *, config: MimiConfig, tensors: dict[str, NDArray[np.floating]], pool: ThreadPool | None = None
    ) -> None: ...
    def new_state(self) -> MimiEncoderState: ...
    def encode(self, *, state: MimiEncoderState, samples: NDArray[np.float32]) -> NDArray[np.int32]: ...
    def measure(self, *, on: bool) -> None: ...
    def stages(self) -> dict[str, tuple[float, float, float]]: ...

# ---- depth decoder (depth_decoder.cpp) ----

class _Tensor(Protocol):
    @property
    def type(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def data(self) -> NDArray[np.uint8]: ...

class Sampler:
    def __init__(
        self,
        *,
        seed: int,
        temperature: float,
        top_k: int,
        depth_temperature: float | None = None,
        depth_top_k: int | None = None,
    ) -> None: ...
    def sample(self, logits: NDArray[np.float32], *, codebook: int = 0) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def draws(self) -> int: ...

class EmbeddingTable:
    def __init__(self, *, data: NDArray[np.uint8], type: int, rows: int, cols: int) -> None: ...
    def sum_rows(self, ids: NDArray[np.int64]) -> NDArray[np.float32]: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...

class Linear:
    def __init__(self, *, data: NDArray[np.uint8], type: int, rows: int, cols: int, pool: ThreadPool) -> None: ...
    def multiply(self, x: NDArray[np.float32]) -> NDArray[np.float32]: ...

class TowerConfig:
    def __init__(
        self,
        *,
        layers: int,
        width: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        ffn: int,
        norm_eps: float,
        rope_theta: float,
        positions: int,
    ) -> None: ...

class Backbone:
    def __init__(
        self,
        *,
        config: TowerConfig,
        vocab: int,
        slots: int,
        tensors: Mapping[str, _Tensor],
        pool: ThreadPool,
    ) -> None: ...
    def decode(
        self,
        *,
        embeddings: NDArray[np.float32],
        positions: NDArray[np.int32],
        slots: NDArray[np.int32],
        outputs: NDArray[np.bool_],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...
    def forget(self, slot: int) -> None: ...
    def save(self, *, slot: int, count: int) -> NDArray[np.float32]: ...
    def restore(self, *, slot: int, count: int, saved: NDArray[np.float32]) -> None: ...
    def measure(self, *, on: bool) -> None: ...
    def parts(self) -> dict[str, float]: ...

class DepthDecoderConfig:
    def __init__(self, *, tower: TowerConfig, codebooks: int, vocab: int, input_width: int) -> None: ...

class DepthDecoder:
    def __init__(self, *, config: DepthDecoderConfig, tensors: Mapping[str, _Tensor], pool: ThreadPool) -> None: ...
    def decode_frames(
        self,
        *,
        hidden: NDArray[np.float32],
        c0_logits: NDArray[np.float32],
        samplers: list[Sampler],
    ) -> NDArray[np.int32]: ...
    def logits(self, *, hidden: NDArray[np.float32], codes: NDArray[np.int32]) -> NDArray[np.float32]: ...
    def measure(self, *, on: bool) -> None: ...
    def parts(self) -> dict[str, float]: ...

# ---- single kernels, for tests and benchmarks (kernels.cpp) ----

def kernel_matmul(
    *, isa: str, data: NDArray[np.uint8], type: int, rows: int, cols: int, x: NDArray[np.float32]
) -> NDArray[np.float32]: ...
def kernel_round(*, isa: str, x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]: ...
def kernel_vector(*, isa: str, name: str, a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]: ...

# ---- the codec's kernels, for tests and benchmarks (dense.cpp) ----

def dense_matmul(
    *,
    isa: str,
    x: NDArray[np.float32],
    w: NDArray[np.floating],
    bias: NDArray[np.float32],
    skip: NDArray[np.float32] | None = None,
    scale: NDArray[np.float32] | None = None,
    activation: str = "none",
) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...
def dense_layer_norm(
    *,
    isa: str,
    x: NDArray[np.float32],
    gamma: NDArray[np.float32],
    beta: NDArray[np.float32],
    eps: float,
) -> NDArray[np.float32]: ...
def dense_attend(
    *, isa: str, q: NDArray[np.float32], keys: NDArray[np.float32], values: NDArray[np.float32]
) -> NDArray[np.float32]: ...
