"""Opening a single-file model: everything is checked once, here, and the tensors stay mapped in the file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelInvalid, ModelNotFound
from . import file_schema as schema
from .config import ModelConfig, TowerConfig
from .file_schema import TensorSpec
from .ggml import GGMLType, GgufError, GgufHeader, TensorInfo, parse_gguf
from .values import config_from

MAP_ALIGNMENT = 32
"""Bytes: llama.cpp maps an embedded GGUF only if it begins on such a boundary."""
MAX_LISTED = 12
"""Problems that an error message lists."""


@dataclass(frozen=True)
class TensorView:
    """A tensor in the mapped file."""

    name: str
    type: int  # GGML type id
    shape: tuple[int, ...]  # row-major
    data: NDArray[np.uint8]  # 1-D, read-only


class Bundle:
    """A single-file model, validated and memory-mapped; use :meth:`open`, as a context manager if you like.

    Views stay valid after :meth:`close`: the file is unmapped when the last of them goes.
    """

    def __init__(
        self,
        path: Path,
        *,
        config: ModelConfig,
        tokenizer_json: str,
        tensors: dict[str, TensorView],
        towers: dict[str, dict[str, TensorView]],
        embedded: dict[str, tuple[int, int]],
    ) -> None:
        self.path = path
        self.config = config
        self.tokenizer_json = tokenizer_json
        self._tensors = tensors
        self._towers = towers
        self._embedded = embedded

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open and check the model at ``path``.

        Raises ModelNotFound where there is no file, ModelInvalid with all problems together where the file
        is truncated, hostile, incomplete or misshapen.
        """
        path = Path(path)
        data = _map(path)
        try:
            header = parse_gguf(data)
        except GgufError as error:
            raise ModelInvalid(
                f"{path} is not a readable model file: {error}; download or convert it again"
            ) from error
        return _Check(path, data, header).bundle()

    def tensor(self, name: str) -> TensorView:
        """``text_embd``, ``audio_embd``, ``projection``, ``heads`` or a ``mimi.*``; KeyError for others."""
        return self._tensors[name]

    def codec_tensors(self) -> dict[str, TensorView]:
        """The codec's tensors by their names without ``mimi.``."""
        prefix = schema.CODEC_PREFIX
        return {n.removeprefix(prefix): t for n, t in self._tensors.items() if n.startswith(prefix)}

    def backbone_tensors(self) -> dict[str, TensorView]:
        """The tensors of the embedded ``backbone.gguf`` by llama.cpp's names."""
        return dict(self._towers[schema.BACKBONE])

    def decoder_tensors(self) -> dict[str, TensorView]:
        """The tensors of the embedded ``decoder.gguf`` by llama.cpp's names."""
        return dict(self._towers[schema.DECODER])

    def embedded(self, name: str) -> tuple[int, int]:
        """(offset, size) in bytes of ``backbone.gguf`` or ``decoder.gguf`` in the file at ``path``."""
        return self._embedded[name]

    def close(self) -> None:
        """Let go of the mapping."""
        self._tensors, self._towers = {}, {}

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _map(path: Path) -> NDArray[np.uint8]:
    try:
        if path.is_dir():
            raise ModelInvalid(f"{path} is a directory; name the model file in it")
        if path.stat().st_size == 0:
            raise ModelInvalid(f"{path} is empty: download or convert it again")
        return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    except FileNotFoundError as error:
        raise ModelNotFound(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise ModelInvalid(f"{path} cannot be read: {error}") from error


class _Check:
    """One pass over a parsed header that collects every problem before it raises."""

    def __init__(self, path: Path, data: NDArray[np.uint8], header: GgufHeader) -> None:
        self.path = path
        self.data = data
        self.header = header
        self.problems: list[str] = []

    def bundle(self) -> Bundle:
        values = self.header.values
        self._check_kind(values)
        config, self.problems = config_from(values)
        tokenizer = values.get(schema.TOKENIZER_KEY)
        if not isinstance(tokenizer, str) or not tokenizer:
            self.problems.append(
                f"it holds no tokenizer (key {schema.TOKENIZER_KEY}); convert it again with --tokenizer"
            )
        if config is None or self.problems:
            raise self._error()
        tensors = self._tensors(self.header, 0, schema.bundle_tensors(config), "")
        backbone, backbone_place = self._tower(schema.BACKBONE, config.backbone, config.audio_vocab, head=True)
        decoder, decoder_place = self._tower(schema.DECODER, config.decoder, schema.STAND_IN_VOCAB, head=False)
        if self.problems or backbone_place is None or decoder_place is None:
            raise self._error()
        embedded = {schema.BACKBONE: backbone_place, schema.DECODER: decoder_place}
        return Bundle(
            self.path,
            config=config,
            tokenizer_json=str(tokenizer),
            tensors=tensors,
            towers={schema.BACKBONE: backbone, schema.DECODER: decoder},
            embedded=embedded,
        )

    def _check_kind(self, values: dict[str, Any]) -> None:
        architecture = values.get(schema.ARCHITECTURE_KEY)
        if architecture != schema.ARCHITECTURE:
            raise ModelInvalid(
                f"{self.path} is a GGUF of architecture {architecture!r}, not {schema.ARCHITECTURE!r}; "
                "make one with: csm-hybrid quantize CHECKPOINT -o model.gguf"
            )
        version = values.get(schema.VERSION_KEY)
        if version is None:
            raise ModelInvalid(
                f"{self.path} was made by another program (it has no {schema.VERSION_KEY}); "
                "make one with: csm-hybrid quantize CHECKPOINT -o model.gguf"
            )
        if version != schema.VERSION:
            raise ModelInvalid(
                f"{self.path} has layout version {version}; this release reads version {schema.VERSION}: "
                "convert the checkpoint again, or use the release that made it"
            )

    def _error(self) -> ModelInvalid:
        listed = "; ".join(self.problems[:MAX_LISTED])
        more = len(self.problems) - MAX_LISTED
        if more > 0:
            listed += f"; and {more} more"
        return ModelInvalid(f"{self.path} cannot be used: {listed}; download it or convert its checkpoint again")

    def _tensors(
        self, header: GgufHeader, base: int, specs: Iterable[TensorSpec], where: str
    ) -> dict[str, TensorView]:
        """The tensors that ``specs`` demand from a header whose GGUF begins at byte ``base``."""
        views: dict[str, TensorView] = {}
        for spec in specs:
            info = header.tensors.get(spec.name)
            problem = _tensor_problem(spec, info)
            if info is None or problem:
                self.problems.append(f"{where}tensor {spec.name} {problem}")
                continue
            begin = base + info.offset
            data = self.data[begin : begin + info.size]
            views[spec.name] = TensorView(spec.name, info.type, spec.shape, data)
        return views

    def _tower(
        self, name: str, tower: TowerConfig, vocab: int, *, head: bool
    ) -> tuple[dict[str, TensorView], tuple[int, int] | None]:
        """The tensors of an embedded tower and its place in the file."""
        info = self.header.tensors.get(name)
        if info is None or info.type != GGMLType.I8:
            self.problems.append(f"tensor {name} is missing" if info is None else f"tensor {name} is not of type I8")
            return {}, None
        if info.offset % MAP_ALIGNMENT:
            self.problems.append(f"{name} begins at byte {info.offset}, which {MAP_ALIGNMENT} does not divide")
        try:
            header = parse_gguf(self.data[info.offset : info.offset + info.size])
        except GgufError as error:
            self.problems.append(f"the embedded {name} is not readable: {error}")
            return {}, None
        wanted_values = schema.tower_values(tower, vocab)
        for key, wanted in wanted_values.items():
            found = header.values.get(key)
            if not _same(found, wanted):
                self.problems.append(f"{name} has {key} = {found!r}, the model says {wanted!r}")
        specs = list(schema.tower_tensors(tower, vocab, head=head))
        # llama.cpp acts on keys and tensors that this layout does not know.
        strange = [k for k in header.values if k.startswith(("llama.", "tokenizer.")) and k not in wanted_values]
        strange += sorted(header.tensors.keys() - {spec.name for spec in specs})
        self.problems += [f"{name} holds {key}, which does not belong there" for key in strange]
        return self._tensors(header, info.offset, specs, f"{name}: "), (info.offset, info.size)


def _tensor_problem(spec: TensorSpec, info: TensorInfo | None) -> str | None:
    if info is None:
        return "is missing"
    if info.shape != _without_outer_ones(spec.shape):
        return f"has shape {list(info.shape)}, {list(spec.shape)} is needed"
    if info.type not in spec.types:
        allowed = ", ".join(sorted(t.name.lower() for t in spec.types))
        return f"has type {_type_name(info.type)}, one of {allowed} is needed"
    return None


def _type_name(kind: int) -> str:
    return GGMLType(kind).name.lower() if kind in GGMLType._value2member_map_ else f"number {kind}"


def _without_outer_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape as a GGUF keeps it: which does not tell outer extents of 1 from absent ones."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _same(found: Any, wanted: str | int | float) -> bool:
    """Equal, numbers to the precision of the float32 that llama.cpp's keys are kept in."""
    if isinstance(wanted, float):
        return isinstance(found, float) and np.float32(found) == np.float32(wanted)
    return bool(found == wanted) and not isinstance(found, bool)
