"""From the flags that name a model to a bundle on this machine.

The flags are csm.rs's, with its precedence: a file (``--weights-path``), else a directory (``--model-path``),
else a repository of the Hugging Face hub (``--model-id``); ``--model-file`` and ``--index-file`` pick inside
the latter two. Nothing named is the embedded model. Nothing is downloaded unless it is named. A safetensors
checkpoint is converted once (:mod:`.conversions`).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, ModelInvalid, ModelNotFound
from .conversions import Part, cache_directory, converted

if TYPE_CHECKING:
    from csm_hybrid.quantize.progress import Progress

MAGIC = b"GGUF"


@dataclass(frozen=True)
class ModelFlags:
    """The command line's model flags, None where not given."""

    weights_path: Path | None = None  # a .gguf or .safetensors file
    model_path: Path | None = None  # a directory
    model_id: str | None = None  # a hub repository
    revision: str | None = None  # a branch, tag or commit of model_id
    model_file: str | None = None  # a file in model_path or model_id
    index_file: str | None = None  # an index of shards in model_path or model_id
    tokenizer_id: str | None = None  # for checkpoints: a hub repository, a directory or a tokenizer.json
    weight_type: str | None = None  # for checkpoints: the type to convert them to


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
    try:
        return _resolved(flags, progress)
    except OSError as error:  # a name that is too long, a directory that is locked
        raise ModelNotFound(f"{error.filename} cannot be read: {error.strerror}") from error


def _resolved(flags: ModelFlags, progress: Progress | None) -> ResolvedModel:
    if flags.weights_path is not None:
        if not flags.weights_path.is_file():
            raise ModelNotFound(f"--weights-path {flags.weights_path}: no such file")
        return ResolvedModel(_local(flags.weights_path, flags, progress), embedded=False)
    if flags.model_path is not None:
        return ResolvedModel(_local(_in_directory(flags.model_path, flags), flags, progress), embedded=False)
    if flags.model_id is not None:
        return ResolvedModel(_from_hub(flags.model_id, flags, progress), embedded=False)
    return ResolvedModel(embedded_model(), embedded=True)


def _check_together(flags: ModelFlags) -> None:
    inside = {"--model-file": flags.model_file, "--index-file": flags.index_file}
    for flag, value in inside.items():
        if value is not None and flags.model_path is None and flags.model_id is None:
            raise InputError(f"{flag} {value} names a file inside --model-path or --model-id: give one of them")
        if value is not None and Path(value).is_absolute():
            raise InputError(f"{flag} {value} is an absolute path: name a file inside the model's directory")
    if flags.model_file is not None and flags.index_file is not None:
        raise InputError("--model-file and --index-file exclude each other: a single file has no index")
    if flags.revision is not None and flags.model_id is None:
        raise InputError(f"--revision {flags.revision} is one of a hub repository: name it with --model-id")
    if flags.weights_path is None and flags.model_path is None and flags.model_id is None:
        _check_for_bundle(flags, "the embedded model")


def _check_for_bundle(flags: ModelFlags, what: str) -> None:
    """Refuses the flags that say how a checkpoint is converted, where there is nothing to convert."""
    for flag, value in (("--tokenizer-id", flags.tokenizer_id), ("--type", flags.weight_type)):
        if value is not None:
            raise InputError(
                f"{flag} is for checkpoints, and {what} is a whole model with its own tokenizer and types:"
                " leave the option out"
            )


def _in_directory(folder: Path, flags: ModelFlags) -> Path:
    """The bundle or checkpoint in a directory: the named file, else the checkpoint, else its only bundle."""
    flag = f"--model-path {folder}"
    if not folder.is_dir():
        raise ModelNotFound(f"{flag}: no such directory")
    if flags.model_file is not None:
        if not (folder / flags.model_file).is_file():
            raise ModelNotFound(f"{flag} has no file {flags.model_file}")
        return folder / flags.model_file
    bundles = sorted(path for path in folder.iterdir() if _is_bundle(path))
    if any(folder.glob("*.safetensors")) or flags.index_file is not None or not bundles:
        return folder
    if len(bundles) > 1:
        raise ModelInvalid(f"{flag} holds {len(bundles)} .gguf files: pick one with --model-file")
    return bundles[0]


def _is_bundle(path: Path) -> bool:
    """Whether a file is a GGUF: by its first bytes, whatever it is called, or by its name, however damaged."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".gguf":
        return True
    with suppress(OSError), path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC
    return False


def _local(source: Path, flags: ModelFlags, progress: Progress | None) -> Path:
    """The bundle at ``source``, or the conversion of the checkpoint there."""
    if _is_bundle(source):
        _check_for_bundle(flags, str(source))
        return source
    from csm_hybrid.quantize.source import COMPANIONS, weight_files

    paths = weight_files(source, flags.index_file)
    folder = paths[0].parent
    files = [*paths, *sorted(folder.glob("tokenizer-*.safetensors")), *(folder / name for name in COMPANIONS)]
    label = (source if source.is_dir() else source.parent).resolve().name or "model"
    return _converted(label, Part(_state_of(files), lambda: source), flags, progress, index_file=flags.index_file)


def _from_hub(repository: str, flags: ModelFlags, progress: Progress | None) -> Path:
    """The bundle in a hub repository, or the conversion of the checkpoint there, downloaded where it is not here."""
    from . import hub  # here: the hub's client takes its time to import

    cache = cache_directory()
    snapshot = hub.look_up(repository, flags.revision, cache, flags.model_file or flags.index_file)
    main = snapshot.checkpoint_or_bundle(flags.model_file, flags.index_file)

    def download() -> Path:
        path = snapshot.download(main, tokenizer=flags.tokenizer_id is None)
        snapshot.remember(cache)
        return path

    if hub.is_bundle(main):
        _check_for_bundle(flags, main)
        return download()
    weights = Part(f"{repository} {snapshot.commit} {main}", download)
    made = _converted(repository.rsplit("/", maxsplit=1)[-1], weights, flags, progress)
    snapshot.remember(cache)
    return made


def embedded_model() -> Path:
    """The bundle that ships with the package."""
    folder = Path(__file__).parents[1] / "voice"
    bundles = sorted(folder.glob("*.gguf"))
    if not bundles:
        raise ModelNotFound(
            f"this installation has no embedded model in {folder}: name a model, "
            "for example --model-id sesame/csm-1b, or install the package again"
        )
    return bundles[0]


def _converted(
    label: str, weights: Part, flags: ModelFlags, progress: Progress | None, *, index_file: str | None = None
) -> Path:
    """The conversion of a checkpoint, by the flags that are about conversions."""
    tokenizer = None if flags.tokenizer_id is None else _tokenizer(flags.tokenizer_id)
    return converted(label, weights, tokenizer, flags.weight_type, progress, index_file=index_file)


def _state_of(files: list[Path]) -> str:
    """Places, sizes and times of those of the files that are there."""
    lines = []
    for path in files:
        real = path.resolve()
        if real.exists():
            status = real.stat()
            lines.append(f"{real} {status.st_size} {status.st_mtime_ns}")
    return "\n".join(lines)


def _tokenizer(name: str) -> Part:
    """A local ``tokenizer.json`` or its directory, else the file of a hub repository."""
    local = Path(name)
    if local.exists():
        folder = local if local.is_dir() else local.parent
        file = local / "tokenizer.json" if local.is_dir() else local
        return Part(_state_of([file, folder / "tokenizer_config.json"]), lambda: local)
    from . import hub

    cache = cache_directory()
    snapshot = hub.look_up(name, None, cache)

    def download() -> Path:
        path = snapshot.download_tokenizer()
        snapshot.remember(cache)
        return path

    return Part(f"{name} {snapshot.commit} tokenizer.json", download)
