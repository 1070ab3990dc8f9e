"""The cache of conversions: models that were made here once and are kept, each under a name that tells what of.

A model that was interrupted, damaged or made by another version of the converter is made again.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelInvalid, ModelNotFound, OutputError
from ..model import file_schema as schema
from ..model.bundle import Bundle

if TYPE_CHECKING:
    from csm_hybrid.quantize.progress import Progress

CACHE_VARIABLE = "CSM_HYBRID_CACHE"


def cache_directory() -> Path:
    """Where converted checkpoints are kept: ``$CSM_HYBRID_CACHE`` or the platform's place for caches."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE]).expanduser()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "csm-hybrid"


@contextmanager
def _writable_cache() -> Iterator[Path]:
    """The cache directory, made if need be; a place that cannot be written is named with its remedy."""
    folder = cache_directory()
    remedy = f"set {CACHE_VARIABLE} to a directory with room"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise OutputError(f"the cache {folder} cannot be written: {error}; {remedy}") from error
    except OutputError as error:
        raise OutputError(f"{error}; {remedy}") from error


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """The model of that name in the cache; ``make`` writes it where there is none, or one that is damaged.

    Raises OutputError where the cache cannot be written, and what ``make`` raises.
    """
    with _writable_cache() as cache:
        path = cache / name
        try:
            Bundle.open(path).close()
        except (ModelNotFound, ModelInvalid):
            path.unlink(missing_ok=True)
            make(path)
        return path


@dataclass(frozen=True)
class Part:
    """Something that goes into a conversion: what tells it from others, and how its file gets here."""

    identity: str
    path: Callable[[], Path]


def converted(
    label: str,
    weights: Part,
    tokenizer: Part | None,
    weight_type: str | None,
    progress: Progress | None,
    *,
    index_file: str | None = None,
) -> Path:
    """The kept conversion of a checkpoint, made now if it is not there; only then are its files needed.

    ``label`` names the model, ``tokenizer`` is one that is not beside the weights, ``weight_type`` a ``--type``.
    Raises InputError for unknown types, ModelNotFound and ModelInvalid for what is no checkpoint, OutputError
    where the cache cannot be written.
    """
    # Only a checkpoint needs the converter; the usual start should not pay for its imports.
    from csm_hybrid.quantize.convert import convert
    from csm_hybrid.quantize.recipe import DEFAULT, recipe_named
    from csm_hybrid.quantize.source import open_checkpoint, with_overrides

    recipe = recipe_named(weight_type or DEFAULT)
    parts = [f"{schema.VERSION} {schema.CONVERSION} {recipe.name}", weights.identity]
    parts += [] if tokenizer is None else [tokenizer.identity]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def make(target: Path) -> None:
        source = weights.path()
        checkpoint = open_checkpoint(
            source, index_file=index_file, tokenizer=None if tokenizer is None else tokenizer.path()
        )
        checkpoint = with_overrides(checkpoint, name=label, prompt_template=None)
        convert(checkpoint, target, recipe, progress=progress)

    return kept(f"{label}-{recipe.name}-{key}.gguf", make)
