"""Models for every test: tiny random ones and the embedded model, converted once a session and type."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from csm_hybrid.quantize.convert import convert
from csm_hybrid.quantize.recipe import recipe_named
from csm_hybrid.quantize.source import open_checkpoint, with_overrides
from golden import generate

# A shell that runs the tests in the background leaves SIGINT ignored, which the programs under test would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

TESTS = Path(__file__).parent

# Child processes import what this one does: the installed package, and not the sources in the directory that
# the tests are started from, which lack the extension module.
os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
os.environ["PYTHONSAFEPATH"] = "1"


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint's directory by name.

    ``transformers``, ``original``: the tiny model of ``tests/golden`` in both layouts; ``blocks``: one whose
    widths blocks of 256 divide (float32, transformers' layout); ``voice``: the embedded model's.
    """
    made: dict[str, Path] = {}

    def checkpoint(name: str) -> Path:
        if name == "voice":
            return TESTS / "voice"
        if name == "blocks" and name not in made:
            folder = tmp_path_factory.mktemp("blocks")
            made[name] = generate.write_transformers(folder, generate.BLOCKS, dtype="F32")
        return made.get(name, TESTS / "golden" / name)

    return checkpoint


@pytest.fixture(scope="session")
def bundles(
    tmp_path_factory: pytest.TempPathFactory, checkpoints: Callable[[str], Path]
) -> Callable[[str, str], Path]:
    """A bundle's path by its checkpoint's name (see ``checkpoints``) and its type."""
    made: dict[tuple[str, str], Path] = {}

    def bundle(name: str, type_name: str) -> Path:
        if (name, type_name) not in made:
            path = tmp_path_factory.mktemp("bundle") / f"{name}-{type_name}.gguf"
            checkpoint = with_overrides(open_checkpoint(checkpoints(name)), name=name, prompt_template=None)
            convert(checkpoint, path, recipe_named(type_name))
            made[name, type_name] = path
        return made[name, type_name]

    return bundle
