"""From the flags that name a model to a bundle on this machine.

The flags are csm.rs's, with its precedence: a file (``--weights-path``), else a directory (``--model-path``),
else a repository of the Hugging Face hub (``--model-id``); ``--model-file`` and ``--index-file`` pick inside
the latter two. Nothing named is the embedded voice. Nothing is downloaded unless it is named. A safetensors
checkpoint is converted once, into a cache.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from csm_hybrid.errors import InputError, ModelInvalid, ModelNotFound, OutputError
from csm_hybrid.model import schema
from csm_hybrid.model.bundle import Bundle

if TYPE_CHECKING:
    from quantize.progress import Progress

CACHE_VARIABLE = "CSM_HYBRID_CACHE"


@dataclass(frozen=True)
class ModelFlags:
    """The command line's model flags, None where not given."""

    weights_path: Path | None = None  # a .gguf or .safetensors file
    model_path: Path | None = None  # a directory
    model_id: str | None = None  # a hub repository
    model_file: str | None = None  # a file in model_path or model_id
    index_file: str | None = None  # an index of shards in model_path or model_id
    tokenizer_id: str | None = None  # for checkpoints: a hub repository, a directory or a tokenizer.json


@dataclass(frozen=True)
class ResolvedModel:
    """A bundle on this machine."""

    path: Path
    embedded: bool  # the small voice that ships with the package


def resolve(flags: ModelFlags, progress: Progress | None = None) -> ResolvedModel:
    """The bundle that ``flags`` name, converted first if they name a safetensors checkpoint.

    Raises ModelNotFound for what is not there, saying what was looked for and how to get it; ModelInvalid
    for what is no model; InputError for flags that make no sense together; OutputError where the conversion
    cannot be written.
    """
    _check_together(flags)
    source = _source(flags)
    if source is None:
        return ResolvedModel(embedded_voice(), embedded=True)
    if source.suffix == ".gguf":
        if flags.tokenizer_id is not None:
            raise InputError(
                f"--tokenizer-id is for checkpoints; {source} holds its own tokenizer. Leave the flag out"
            )
        if not source.is_file():
            raise ModelNotFound(f"{source}: no such model file")
        return ResolvedModel(source, embedded=False)
    return ResolvedModel(_converted(source, flags, progress), embedded=False)


def _check_together(flags: ModelFlags) -> None:
    inside = {"--model-file": flags.model_file, "--index-file": flags.index_file}
    for flag, value in inside.items():
        if value is not None and flags.model_path is None and flags.model_id is None:
            raise InputError(f"{flag} {value} names a file inside --model-path or --model-id: give one of them")
        if value is not None and Path(value).is_absolute():
            raise InputError(f"{flag} {value} is an absolute path: name a file inside the model's directory")
    if flags.model_file is not None and flags.index_file is not None:
        raise InputError("--model-file and --index-file exclude each other: a single file has no index")


def _source(flags: ModelFlags) -> Path | None:
    """A bundle, or a checkpoint's file or directory; None for the embedded voice."""
    if flags.weights_path is not None:
        if not flags.weights_path.is_file():
            raise ModelNotFound(f"--weights-path {flags.weights_path}: no such file")
        return flags.weights_path
    if flags.model_path is not None:
        return _in_directory(flags.model_path, flags.model_file, f"--model-path {flags.model_path}")
    if flags.model_id is not None:
        from csm_hybrid.model import hub  # here: the hub's client takes its time to import

        folder = hub.download_model(flags.model_id, flags.model_file, flags.index_file)
        return _in_directory(folder, flags.model_file, f"--model-id {flags.model_id}")
    if flags.tokenizer_id is not None:
        raise InputError("--tokenizer-id without a model: the embedded voice has its own tokenizer")
    return None


def _in_directory(folder: Path, name: str | None, flag: str) -> Path:
    """The bundle or checkpoint in a directory: the named file, else the checkpoint, else its only bundle."""
    if not folder.is_dir():
        raise ModelNotFound(f"{flag}: no such directory")
    if name is not None:
        if not (folder / name).is_file():
            raise ModelNotFound(f"{flag} has no file {name}")
        return folder / name
    bundles = sorted(folder.glob("*.gguf"))
    if any(folder.glob("*.safetensors")) or not bundles:
        return folder
    if len(bundles) > 1:
        raise ModelInvalid(f"{flag} holds {len(bundles)} .gguf files: pick one with --model-file")
    return bundles[0]


def embedded_voice() -> Path:
    """The bundle that ships with the package."""
    folder = Path(str(files("csm_hybrid"))) / "voice"
    bundles = sorted(folder.glob("*.gguf"))
    if not bundles:
        raise ModelNotFound(
            f"this installation has no embedded voice in {folder}: name a model, "
            "for example --model-id sesame/csm-1b, or install the package again"
        )
    return bundles[0]


def cache_directory() -> Path:
    """Where converted checkpoints are kept: ``$CSM_HYBRID_CACHE`` or the platform's place for caches."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "csm-hybrid"


@contextmanager
def writable_cache() -> Iterator[Path]:
    """The cache directory, made if need be; a place that cannot be written is named with its remedy."""
    folder = cache_directory()
    remedy = f"set {CACHE_VARIABLE} to a directory with room"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise OutputError(f"the cache {folder} cannot be written: {error.strerror}; {remedy}") from error
    except OutputError as error:
        raise OutputError(f"{error}; {remedy}") from error


def _converted(source: Path, flags: ModelFlags, progress: Progress | None) -> Path:
    """The cached bundle of a checkpoint, converted now if it is not there."""
    # Only a checkpoint needs the converter; the usual start should not pay for its imports.
    from quantize.convert import convert
    from quantize.recipe import DEFAULT, RECIPES
    from quantize.source import open_checkpoint, weight_files, with_overrides

    paths = weight_files(source, flags.index_file)
    tokenizer = None if flags.tokenizer_id is None else _tokenizer(flags.tokenizer_id)
    key = _identity(paths, tokenizer, DEFAULT)
    with writable_cache() as cache:
        target = cache / f"{_label(source, flags)}-{DEFAULT}-{key}.gguf"
        if target.exists():
            try:
                Bundle.open(target).close()
                return target
            except ModelInvalid:
                target.unlink()  # damaged, or of another release: make it again
        checkpoint = open_checkpoint(source, index_file=flags.index_file, tokenizer=tokenizer)
        checkpoint = with_overrides(checkpoint, name=_label(source, flags), prompt_template=None)
        convert(checkpoint, target, RECIPES[DEFAULT], progress=progress)
        return target


def _label(source: Path, flags: ModelFlags) -> str:
    if flags.model_id is not None:
        return flags.model_id.split("/")[-1]
    folder = source if source.is_dir() else source.parent
    return folder.resolve().name or "model"


def _identity(weights: list[Path], tokenizer: Path | None, recipe: str) -> str:
    """A short hash of what goes into a conversion: places, sizes and times of its files, type and layout."""
    folder = weights[0].parent
    companions = [folder / "config.json", folder / "generation_config.json"]
    companions += [tokenizer or folder / "tokenizer.json", folder / "tokenizer_config.json"]
    parts = [f"{schema.VERSION} {recipe}"]
    for path in [*weights, *sorted(folder.glob("tokenizer-*.safetensors")), *companions]:
        real = path.resolve()
        if real.exists():
            status = real.stat()
            parts.append(f"{real} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _tokenizer(name: str) -> Path:
    """A local ``tokenizer.json`` or its directory, else the file of a hub repository."""
    local = Path(name)
    if local.exists():
        return local
    from csm_hybrid.model import hub

    return hub.download_tokenizer(name)
