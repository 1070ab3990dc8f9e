"""Which synthetic model a benchmark means: a named one, or one of the sizes of a model or configuration at hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from ..model.config import ModelConfig

# Ends of a text segment in a synthetic model's tokenizer, after its 256 bytes.
_TEXT_ENDS = (256, 257)


def parse(spec: str) -> tuple[str, str | None]:
    """``SIZES`` or ``SIZES:TYPE``: what gives the sizes, and the type if one is named. Raises InputError."""
    from csm_hybrid.quantize.recipe import recipe_named

    sizes, _, kind = spec.rpartition(":")
    if not sizes or "/" in kind or "\\" in kind:  # a path may hold a colon
        return spec, None
    return sizes, recipe_named(kind).name


def model_of(sizes: str, kind: str | None) -> Path:
    """A cached model with random weights, made now if it is not there.

    ``sizes`` is the name of one that :mod:`.synthetic` knows, a model file (.gguf), whose twin is
    made, or a checkpoint's config.json in transformers' format. Raises InputError, ModelError, OutputError.
    """
    from csm_hybrid.quantize.recipe import DEFAULT, recipe_named

    from .synthetic import kept_synthetic, synthetic_model

    if Path(sizes).suffix not in (".gguf", ".json"):
        return synthetic_model(f"{sizes}:{kind}" if kind else sizes)
    from ..model.values import faults

    config = _sizes_of(Path(sizes))
    found = faults(config)
    if found:
        raise InputError(f"no model has the sizes of {sizes}: {'; '.join(found)}")
    return kept_synthetic(config.name, config, recipe_named(kind or DEFAULT))


def _sizes_of(path: Path) -> ModelConfig:
    from ..model.bundle import Bundle

    if path.suffix == ".gguf":
        with Bundle.open(path) as bundle:
            config = bundle.config
    else:
        config = _read(path)
    begin, end = _TEXT_ENDS
    return replace(
        config,
        name=f"{path.stem}-twin",
        bos_id=begin,
        eos_id=end,
        text_vocab=max(config.text_vocab, end + 1),
    )


def _read(path: Path) -> ModelConfig:
    from csm_hybrid.quantize.checkpoint_config import TableSizes, mimi_config, model_config
    from csm_hybrid.quantize.json_settings import Settings

    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if "depth_decoder_config" not in values:
            raise InputError(f"{path} holds no depth_decoder_config: give a config.json in transformers' format")
        settings = Settings(values, str(path))
        vocab, codebooks = settings.integer("vocab_size"), settings.integer("num_codebooks")
        sizes = TableSizes(settings.integer("text_vocab_size"), vocab * codebooks, vocab, 0, 0, 0, 0)
        return model_config(values, None, sizes, _TEXT_ENDS, mimi_config(values.get("codec_config")))
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise InputError(f"cannot take sizes from {path}: {type(error).__name__}: {error}") from error
