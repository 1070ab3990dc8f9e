"""What the native back ends of both towers share: sizes, rotary divisors, and the memory they are loaded from."""

from __future__ import annotations

import mmap
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..model.bundle import TensorView
from ..model.config import TowerConfig
from ..model.ggml import GGMLType


def tower_sizes(tower: TowerConfig) -> _native.TowerConfig:
    """A tower's sizes for the native module."""
    return _native.TowerConfig(
        layers=tower.layers,
        width=tower.width,
        heads=tower.heads,
        kv_heads=tower.kv_heads,
        head_dim=tower.head_dim,
        ffn=tower.ffn,
        norm_eps=tower.norm_eps,
        rope_theta=tower.rope_theta,
        positions=tower.positions,
    )


def rope_divisors(tower: TowerConfig) -> TensorView:
    """A tower's divisors of the rotary frequencies as the tensor ``rope_freqs.weight``."""
    divisors = tower.rope_divisors()
    return TensorView("rope_freqs.weight", GGMLType.F32, divisors.shape, divisors.view(np.uint8))


def release_pages(arrays: Iterable[NDArray[np.uint8]]) -> None:
    """Drop the whole pages below ``arrays`` from this process's memory where they map a file read-only.

    The data stays readable: it would come back from the file. Arrays in ordinary memory are left alone.
    """
    for array in arrays:
        mapping = _file_mapping(array)
        if mapping is None or array.size == 0:
            continue
        start = np.frombuffer(mapping, dtype=np.uint8).__array_interface__["data"][0]
        first = array.__array_interface__["data"][0] - start
        begin = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (first + array.size) // mmap.PAGESIZE * mmap.PAGESIZE
        if begin < end:
            mapping.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def _file_mapping(array: NDArray[np.uint8]) -> mmap.mmap | None:
    """The read-only file mapping that an array looks into, if any."""
    base: object = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap) and base.mode != "r":
            return None
        base = base.base
    return base if isinstance(base, mmap.mmap) and hasattr(base, "madvise") else None
