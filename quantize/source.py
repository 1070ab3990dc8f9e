"""Finding a checkpoint's files and opening them as one :class:`Checkpoint`, whatever its layout."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from csm_hybrid.errors import ModelInvalid, ModelNotFound
from csm_hybrid.model.config import MimiConfig, ModelConfig
from csm_hybrid.model.file_schema import BACKBONE, DECODER
from csm_hybrid.model.values import faults

from . import checkpoint_config as settings
from . import codec_names, layouts
from .json_settings import read_json, readable
from .layouts import Layout, Weights
from .safetensors import Tensors

INDEX_NAMES = ("transformers.safetensors.index.json", "model.safetensors.index.json")
"""Indices of sharded checkpoints. The first comes first: a repository that holds two layouts
(sesame/csm-1b) keeps the one with the codec under it."""
SINGLE_NAME = "model.safetensors"
MIMI_PATTERN = "tokenizer-*-checkpoint*.safetensors"
"""Mimi's weights as Kyutai names them; never a part of the towers."""
COMPANIONS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
"""Small files that belong to a checkpoint, where it has them."""
CODEC_MARK = "codec_model."
CODEC_HINT = (
    "make a model file with Mimi's weights, csm-hybrid quantize {source} -o model.gguf --codec-weights FILE (FILE is "
    "tokenizer-e351c8d8-checkpoint125.safetensors of kyutai/moshiko-pytorch-bf16), and speak with --weights-path "
    "model.gguf"
)
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a bundle is made of."""

    config: ModelConfig
    tokenizer_json: str
    weights: Weights
    codec: Mapping[str, NDArray[np.float32]]  # canonical names, without prefix; shapes by codec_schema
    files: tuple[Path, ...]  # that it was read from, the small ones beside the weights included


def open_checkpoint(
    source: Path,
    *,
    index_file: str | None = None,
    codec_weights: Path | None = None,
    tokenizer: Path | None = None,
) -> Checkpoint:
    """Open a checkpoint: a safetensors file, an index, or a directory with either.

    ``codec_weights``: a Mimi in safetensors (moshi's or transformers' names), for checkpoints without one.
    ``tokenizer``: a ``tokenizer.json`` or a directory with one; by default the one beside the weights.
    Weights stay mapped in their files; the codec is read, in float32. Raises ModelNotFound where files are absent
    and ModelInvalid, with all problems together, where they do not make a CSM or one beyond the engine's limits.
    """
    paths = weight_files(source, index_file)
    folder = paths[0].parent
    _check_fetched(paths)
    tensors = Tensors(paths)
    layout = _layout_of(tensors, source)
    config_json = read_json(folder / "config.json")
    sizes = _table_sizes(tensors, layout)
    codec_paths, codec_tensors, codec_config = _codec(tensors, config_json, paths, codec_weights)
    tokenizer_json, ids = _tokenizer(tokenizer or folder, config_json or {})
    config = settings.model_config(
        config_json, read_json(folder / "generation_config.json"), sizes, ids, codec_config
    )
    weights = Weights(tensors, layout)
    found = faults(config) or layouts.problems(weights, config)
    if found:
        raise ModelInvalid(
            f"{source} does not fit its configuration: {'; '.join(found)}; correct its config.json, or take another "
            "checkpoint if it says what the weights are"
        )
    _check_vocabulary(tokenizer_json, config)
    untied = weights.untied_embeddings()
    if untied:
        raise ModelInvalid(
            f"{untied[0]} and {untied[1]} differ: checkpoints with untied audio embeddings are not supported"
        )
    codec = codec_names.canonical_codec(codec_tensors, codec_config)
    beside = [folder / name for name in (*COMPANIONS, *INDEX_NAMES, index_file or source.name)]
    files = (*paths, *codec_paths, *beside, *([tokenizer] if tokenizer else []))
    return Checkpoint(config, tokenizer_json, weights, codec, tuple(path for path in files if path.is_file()))


def weight_files(source: Path, index_file: str | None = None) -> list[Path]:
    """The safetensors files of the checkpoint at ``source``.

    Raises ModelNotFound where there are none, ModelInvalid for what is no checkpoint or cannot be looked at.
    """
    try:
        return _weight_files(source, index_file)
    except OSError as error:  # a name that is too long, a directory that is locked
        raise ModelInvalid(f"{source} cannot be read: {error.strerror}") from error


def _weight_files(source: Path, index_file: str | None) -> list[Path]:
    if not source.exists():
        raise ModelNotFound(f"{source}: no such file or directory")
    if source.is_dir():
        return _directory_files(source, index_file)
    if source.name.endswith(".index.json"):
        return _indexed_files(source)
    if source.suffix == ".safetensors":
        return [source]
    if source.suffix in (".pt", ".pth", ".ckpt", ".bin"):
        raise ModelInvalid(
            f"{source} is a pickled PyTorch file, which is not read (it can run code): "
            "save it as safetensors (safetensors.torch.save_file)"
        )
    raise ModelInvalid(f"{source} is no checkpoint: name a .safetensors file, an .index.json or a directory")


def _directory_files(folder: Path, index_file: str | None) -> list[Path]:
    if index_file is not None:
        if not (folder / index_file).is_file():
            raise ModelNotFound(f"{folder / index_file}: no such index file")
        return _indexed_files(folder / index_file)
    for name in INDEX_NAMES:
        if (folder / name).is_file():
            return _indexed_files(folder / name)
    if (folder / SINGLE_NAME).is_file():
        return [folder / SINGLE_NAME]
    adapter = folder / "adapter_model.safetensors"
    codecs = set(folder.glob(MIMI_PATTERN))
    others = sorted(p for p in folder.glob("*.safetensors") if p not in codecs and p != adapter)
    if len(others) == 1:
        return others
    if others:
        listed = ", ".join(p.name for p in others)
        raise ModelInvalid(f"{folder} holds several safetensors files and no index ({listed}): name one of them")
    if (folder / "adapter_config.json").is_file():
        raise ModelInvalid(f"{folder} holds a LoRA without its model: merge it first (peft's merge_and_unload)")
    if any(folder.glob("*.pt")) or any(folder.glob("*.bin")):
        raise ModelInvalid(f"{folder} holds only pickled PyTorch files, which are not read: save as safetensors")
    raise ModelNotFound(f"{folder} holds no safetensors checkpoint (looked for {SINGLE_NAME}, *.safetensors)")


def _check_fetched(paths: list[Path]) -> None:
    """Refuses what git leaves in a large file's place where its LFS extension is not installed."""
    for path in paths:
        with suppress(OSError), path.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise ModelInvalid(f"{path} is a pointer of git-LFS, not the file: fetch it with git lfs pull")


def shard_names(index: Path) -> list[str]:
    """The files that an index names, sorted; they lie beside it.

    Raises ModelInvalid for what is no index, and for names of files elsewhere.
    """
    content = read_json(index) or {}
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelInvalid(f"{index} has no weight_map: not the index of a sharded checkpoint")
    names = sorted({str(name) for name in weight_map.values()})
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise ModelInvalid(f"{index} names a file outside its directory: {outside[0]}")
    return names


def _indexed_files(index: Path) -> list[Path]:
    names = shard_names(index)
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ModelNotFound(f"{index} names files that are not there: {', '.join(missing)}")
    return [index.parent / name for name in names]


def _layout_of(tensors: Tensors, source: Path) -> Layout:
    marked = [f for f in layouts.LAYOUTS if f.mark in tensors]
    if len(marked) == 1:
        return marked[0]
    if marked:
        raise ModelInvalid(
            f"{source} mixes the tensor names of {' and '.join(f.name for f in marked)}: convert one of them"
        )
    looked = " or ".join(f"{f.mark} ({f.name})" for f in layouts.LAYOUTS)
    raise ModelInvalid(f"{source} is no CSM checkpoint: it has no tensor {looked}")


def _table_sizes(tensors: Tensors, layout: Layout) -> settings.TableSizes:
    """What shapes tell; a missing or misshapen table is an error here, for nothing else can be said then."""
    weights = Weights(tensors, layout)
    names = [weights.table_source(n) for n in ("text_embd", "audio_embd", "projection")] + [layout.output]
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ModelInvalid(f"the checkpoint lacks tensors: {', '.join(missing)}")
    shapes = [tensors.shape(name) for name in names]
    flat = [f"{n} has shape {list(s)}" for n, s in zip(names, shapes, strict=True) if len(s) != 2 or 0 in s]
    if flat:
        raise ModelInvalid(f"the checkpoint is misshapen, two dimensions are needed: {'; '.join(flat)}")
    text, audio, projection, output = shapes
    return settings.TableSizes(
        text_vocab=text[0],
        audio_rows=audio[0],
        audio_vocab=output[0],
        backbone_width=text[1],
        decoder_width=projection[0],
        backbone_layers=layouts.count_layers(tensors, layout, BACKBONE),
        decoder_layers=layouts.count_layers(tensors, layout, DECODER),
    )


class _Floats(Mapping[str, NDArray[np.float32]]):
    """Tensors as float32 arrays, converted when asked for."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self._tensors[name].float32()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors


def _codec(
    tensors: Tensors, config_json: Mapping[str, Any] | None, paths: list[Path], codec_weights: Path | None
) -> tuple[list[Path], Mapping[str, NDArray[np.float32]], MimiConfig]:
    """The codec's files, tensors and sizes: from ``codec_weights``, the checkpoint itself, or a Mimi beside it."""
    own = any(name.startswith(CODEC_MARK) for name in tensors)
    declared = (config_json or {}).get("codec_config")
    if codec_weights is None and own:
        return paths, _Floats(tensors), settings.mimi_config(declared)
    if codec_weights is None:
        beside = sorted(paths[0].parent.glob(MIMI_PATTERN))
        if len(beside) != 1:
            source = paths[0] if len(paths) == 1 else paths[0].parent
            raise ModelInvalid(f"{source} holds no codec: {CODEC_HINT.format(source=source)}")
        codec_weights = beside[0]
    codec_paths = weight_files(codec_weights)
    _check_fetched(codec_paths)
    found = _Floats(Tensors(codec_paths))
    if codec_names.is_moshi_codec(found):
        read = codec_names.moshi_config(found)
        # A described codec knows what shapes do not tell: the split into heads, the context.
        return codec_paths, found, settings.mimi_config(declared) if declared else read
    config_beside = read_json(codec_paths[0].parent / "config.json")
    if config_beside is not None and "codec_config" in config_beside:
        config_beside = config_beside["codec_config"]
    return codec_paths, found, settings.mimi_config(declared or config_beside)


def _tokenizer(place: Path, config: Mapping[str, Any]) -> tuple[str, tuple[int, int]]:
    """The text of ``tokenizer.json`` and the ids around a text segment."""
    try:
        path = place / "tokenizer.json" if place.is_dir() else place
        there = path.is_file()
    except OSError as error:
        raise ModelInvalid(f"{place} cannot be read: {error.strerror}") from error
    if not there:
        raise ModelNotFound(
            f"{path}: no such tokenizer; give CSM's, which is Llama 3.2's tokenizer.json, with --tokenizer "
            "(of quantize; --tokenizer-id of the other commands)"
        )
    try:
        text = path.read_text(encoding="utf-8")
        parsed = json.loads(text)
        if not isinstance(parsed, dict) or "model" not in parsed:
            raise ValueError("no model in it")
        Tokenizer.from_str(text)
    except Exception as error:  # the last one's errors are of no class of their own
        raise ModelInvalid(f"{path} is no tokenizer.json that can be used: {error}") from error
    names = read_json(path.parent / "tokenizer_config.json") or {}
    return text, settings.special_ids(parsed, names, config)


@readable("tokenizer.json")
def _check_vocabulary(tokenizer_json: str, config: ModelConfig) -> None:
    """Every token of the tokenizer's model needs an embedding; tokens added later may never come."""
    vocabulary = json.loads(tokenizer_json)["model"].get("vocab") or {}
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    highest = max((i for i in ids if isinstance(i, int)), default=0)
    if highest >= config.text_vocab:
        raise ModelInvalid(
            f"the tokenizer has tokens up to {highest}, the checkpoint embeds {config.text_vocab}: "
            "give its own with --tokenizer"
        )


def with_overrides(checkpoint: Checkpoint, *, name: str | None, prompt_template: str | None) -> Checkpoint:
    """The checkpoint under another name or prompt template. Raises ModelInvalid for a template without {text}."""
    config = replace(
        checkpoint.config,
        name=name or checkpoint.config.name or "csm",
        prompt_template=prompt_template or checkpoint.config.prompt_template,
    )
    found = faults(config)
    if found:
        raise ModelInvalid("; ".join(found))
    return replace(checkpoint, config=config)
