"""Helpers that several tests share."""

from __future__ import annotations

from pathlib import Path

from csm_hybrid.quantize.convert import convert
from csm_hybrid.quantize.recipe import recipe_named
from csm_hybrid.quantize.source import open_checkpoint, with_overrides

VOICE = Path(__file__).parent / "voice"


def to_bundle(checkpoint: Path, path: Path, kind: str, *, name: str | None = None) -> Path:
    """Converts a checkpoint directory to a bundle of type ``kind`` at ``path``; returns ``path``."""
    convert(with_overrides(open_checkpoint(checkpoint), name=name, prompt_template=None), path, recipe_named(kind))
    return path
