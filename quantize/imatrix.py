"""Importance matrices as llama.cpp's ``llama-imatrix`` writes them (GGUF)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from csm_hybrid.errors import ModelInvalid
from csm_hybrid.model.ggml import GGMLType, GgufError, parse_gguf

SUMS, COUNTS = ".in_sum2", ".counts"


def read_imatrix(path: Path) -> dict[str, NDArray[np.float32]]:
    """Mean squared activations of every column, (columns,) float32 by tensor name.

    Raises ModelInvalid where the file is no importance matrix of a dense model.
    """
    try:
        data = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
        header = parse_gguf(data)
    except (GgufError, OSError, ValueError) as error:
        raise ModelInvalid(f"{path} is no importance matrix in GGUF, as llama-imatrix writes it: {error}") from error

    def floats(name: str) -> NDArray[np.float32]:
        info = header.tensors.get(name)
        if info is None or info.type != GGMLType.F32:
            raise ModelInvalid(f"{path} has no float32 tensor {name}: not an importance matrix")
        return data[info.offset : info.offset + info.size].view(np.float32)

    names = [name.removesuffix(SUMS) for name in header.tensors if name.endswith(SUMS)]
    if not names:
        raise ModelInvalid(f"{path} holds no {SUMS} tensors: not an importance matrix")
    matrix: dict[str, NDArray[np.float32]] = {}
    for name in names:
        counts = floats(name + COUNTS)
        if counts.size != 1:
            raise ModelInvalid(f"{path}: {name} is of a mixture of experts, which no CSM tower is")
        # llama.cpp's rule: a tensor that was never used weighs all columns alike.
        sums = floats(name + SUMS)
        matrix[name] = sums / counts[0] if counts[0] > 0 else np.ones_like(sums)
    return matrix
