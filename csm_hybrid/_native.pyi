"""Types of the extension module (csrc/bindings)."""

import numpy as np
from numpy.typing import NDArray

from csm_hybrid.model.config import MimiConfig

# ---- instruction sets, thread pool (module.cpp) ----

def isa() -> str: ...
def available_isas() -> list[str]: ...

class ThreadPool:
    def __init__(self, *, threads: int) -> None: ...
    @property
    def threads(self) -> int: ...

# ---- codec (mimi.cpp) ----

class MimiDecoderState:
    @property
    def frames(self) -> int: ...
    @property
    def bytes(self) -> int: ...

class MimiDecoder:
    def __init__(
        self, *, config: MimiConfig, tensors: dict[str, NDArray[np.float32]], pool: ThreadPool | None = None
    ) -> None: ...
    def new_state(self) -> MimiDecoderState: ...
    def decode(
        self, *, states: list[MimiDecoderState], codes: NDArray[np.int32], codebooks: int = 0
    ) -> NDArray[np.float32]: ...

# ---- single kernels, for tests and benchmarks (kernels.cpp) ----

def kernel_product(
    *, isa: str, data: NDArray[np.uint8], type: int, rows: int, cols: int, x: NDArray[np.float32]
) -> NDArray[np.float32]: ...
def kernel_round(*, isa: str, x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]: ...
def kernel_vector(
    *, isa: str, name: str, a: NDArray[np.float32], b: NDArray[np.float32]
) -> NDArray[np.float32]: ...
