"""Reading safetensors: tensors of several files as views of their mappings, in their own dtypes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from csm_hybrid.errors import ModelInvalid
from csm_hybrid.model.ggml import GGMLType

DTYPES: dict[str, tuple[GGMLType, Any]] = {
    "F32": (GGMLType.F32, np.dtype("<f4")),
    "F16": (GGMLType.F16, np.dtype("<f2")),
    "BF16": (GGMLType.BF16, np.dtype("<u2")),  # NumPy has no bfloat16: its bits
}


@dataclass(frozen=True)
class Array:
    """Numbers in F32, F16 or BF16 (then uint16 bits); ``values`` may have any strides."""

    type: GGMLType
    values: NDArray[Any]
    name: str = ""  # in the checkpoint

    @property
    def shape(self) -> tuple[int, ...]:
        """Row-major shape."""
        return self.values.shape

    def checked(self) -> Array:
        """The array itself; raises ModelInvalid where it holds NaN or infinity."""
        if self.type == GGMLType.BF16:
            sound = not np.any((self.values & 0x7F80) == 0x7F80)  # all bits of the exponent set
        else:
            sound = bool(np.isfinite(self.values).all())
        if not sound:
            raise ModelInvalid(f"tensor {self.name} holds NaN or infinity: the checkpoint is damaged")
        return self

    def float32(self) -> NDArray[np.float32]:
        """The numbers in float32, exactly."""
        if self.type == GGMLType.BF16:
            return (self.values.astype(np.uint32) << 16).view(np.float32)
        return np.asarray(self.values, dtype=np.float32)


@dataclass(frozen=True)
class _Place:
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int  # bytes in the file


class Tensors(Mapping[str, Array]):
    """The tensors of one or several safetensors files; a file is mapped when one of its tensors is read."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read the headers of ``paths``; raises ModelInvalid for unreadable files and names held twice."""
        self.paths = tuple(paths)
        self._places: dict[str, _Place] = {}
        self._maps: dict[Path, NDArray[np.uint8]] = {}
        for path in self.paths:
            for name, place in _read_header(path):
                if name in self._places:
                    raise ModelInvalid(f"tensor {name} is both in {self._places[name].path} and in {path}")
                self._places[name] = place

    def __getitem__(self, name: str) -> Array:
        place = self._places[name]
        kind = DTYPES.get(place.dtype)
        if kind is None:
            raise ModelInvalid(
                f"tensor {name} in {place.path} has dtype {place.dtype}; {', '.join(DTYPES)} are read: "
                "convert from the unquantised checkpoint"
            )
        if place.path not in self._maps:
            try:
                self._maps[place.path] = np.asarray(np.memmap(place.path, dtype=np.uint8, mode="r"))
            except OSError as error:
                raise ModelInvalid(f"{place.path} cannot be read: {error}") from error
        count = int(np.prod(place.shape, dtype=np.int64))
        data = self._maps[place.path][place.offset : place.offset + count * kind[1].itemsize]
        return Array(kind[0], data.view(kind[1]).reshape(place.shape), name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return self._places[name].shape


def _read_header(path: Path) -> Iterator[tuple[str, _Place]]:
    try:
        with safe_open(path, framework="np") as opened:  # checks the header against the file's size
            names = opened.keys()
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except FileNotFoundError as error:
        raise ModelInvalid(f"{path} is missing: the checkpoint is incomplete") from error
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ModelInvalid(f"{path} is not a readable safetensors file: {error}") from error
    for name in names:
        entry = header[name]
        yield name, _Place(path, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
